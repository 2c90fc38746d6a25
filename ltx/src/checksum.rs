//! CRC-64/GO-ISO, the checksum of LTX, with SIMD where the CPU has it.
//!
//! Polynomial 0x1B, reflected, initial value and final XOR all ones: what Go calls the ISO table of
//! `hash/crc64`. It is not the polynomial of xz, which other CRC-64 libraries compute.

use crc_fast::{CrcAlgorithm, Digest, checksum};

use crate::{Checksum, Pgno};

/// The running checksum of a byte stream.
pub struct Crc64(Digest);

impl Crc64 {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc64GoIso))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all bytes so far, with the flag bit set.
    pub fn checksum(&self) -> Checksum {
        Checksum::from_raw(self.0.finalize() | Checksum::FLAG)
    }

    /// The checksum of `bytes` alone.
    pub fn of(bytes: &[u8]) -> Checksum {
        Checksum::from_raw(checksum(CrcAlgorithm::Crc64GoIso, bytes) | Checksum::FLAG)
    }
}

impl Default for Crc64 {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc64 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc64({})", self.checksum())
    }
}

/// The checksum of one page: over its number (big-endian) and its content.
pub fn page_checksum(pgno: Pgno, data: &[u8]) -> Checksum {
    let mut crc = Crc64::new();
    crc.update(&pgno.get().to_be_bytes());
    crc.update(data);
    crc.checksum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_crc64_go_iso() {
        // The catalogue's check value b90956c775a41001 has its top bit set already.
        assert_eq!(Crc64::of(b"123456789").get(), 0xb909_56c7_75a4_1001);
    }

    #[test]
    fn tiny_snapshot_of_the_format_has_the_documented_sum() {
        // Summed by the reference implementation: pages 1..3 of 512 bytes filled with 1, 2, 3.
        let sum = (1..=3u8).fold(Checksum::EMPTY, |sum, n| {
            sum.toggle(page_checksum(Pgno::new(n.into()).unwrap(), &[n; 512]))
        });
        assert_eq!(sum.get(), 0xefff_ffff_ecd9_9000);
    }

    proptest::proptest! {
        /// SIMD, table and remainders must agree with a plain implementation, however the bytes
        /// come in.
        #[test]
        fn agrees_with_another_implementation_for_any_split(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..5000),
            splits in proptest::collection::vec(proptest::prelude::any::<proptest::sample::Index>(), 0..6),
        ) {
            let oracle = crc::Crc::<u64>::new(&crc::CRC_64_GO_ISO).checksum(&bytes) | 1 << 63;
            let mut splits: Vec<usize> =
                splits.iter().map(|split| split.index(bytes.len() + 1)).collect();
            splits.extend([0, bytes.len()]);
            splits.sort_unstable();
            let mut crc = Crc64::new();
            for part in splits.windows(2) {
                crc.update(&bytes[part[0]..part[1]]);
            }
            proptest::prop_assert_eq!(crc.checksum().get(), oracle);
            proptest::prop_assert_eq!(Crc64::of(&bytes).get(), oracle);
        }
    }
}
