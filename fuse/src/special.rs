//! LiteFS's special files, as its clients read them.
//!
//! | file | content |
//! |---|---|
//! | `.primary` | the primary's host name and a line feed; only on a replica that is connected |
//! | `.lag` | milliseconds behind, as `%+010d\n`: 0 on the primary, 2147483647 if not known yet |
//! | `<db>-pos` | the position, as `%016x/%016x\n` |
//! | `<db>-lock` | empty; a write lock of byte 72 asks the primary to halt |
//!
//! The size that `stat` reports is the content's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::Errno;
use litefs_store::Pos;

use crate::Lag;
use crate::db::Result;
use crate::locks::{LockKind, Range, bytes};

/// The byte of `-lock` that stands for HALT.
const HALT: Range = Range::byte(bytes::HALT);

/// What `.lag` says before a replica first had everything.
const LAG_UNKNOWN: i64 = i32::MAX as i64;

/// The content of `.primary`.
pub(crate) fn primary(hostname: &str) -> Vec<u8> {
    format!("{hostname}\n").into_bytes()
}

/// The content of `.lag`.
pub(crate) fn lag(lag: &Lag) -> Vec<u8> {
    let known = |behind: Duration| i64::try_from(behind.as_millis()).unwrap_or(LAG_UNKNOWN);
    let millis = lag.behind.map_or(LAG_UNKNOWN, |behind| known(behind).min(LAG_UNKNOWN));
    format!("{millis:+010}\n").into_bytes()
}

/// The content of `<db>-pos`.
pub(crate) fn position(pos: Pos) -> Vec<u8> {
    format!("{:016x}/{:016x}\n", pos.txid.get(), pos.checksum.get()).into_bytes()
}

/// A moment given in milliseconds since the Unix epoch.
pub(crate) fn time(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// What a client asks for with a lock of `-lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HaltRequest {
    /// The primary shall let this node write.
    Halt,
    /// The primary shall go on.
    Resume,
}

/// A request for a lock of `-lock`; `kind` is `None` to give it back. LiteFS's answers.
pub(crate) fn halt(kind: Option<LockKind>, range: Range, waits: bool) -> Result<HaltRequest> {
    match kind {
        Some(_) if !waits => Err(Errno::ENOSYS),
        _ if !range.overlaps(HALT) || kind.is_some() && range != HALT => Err(Errno::EINVAL),
        None => Ok(HaltRequest::Resume),
        Some(LockKind::Read) => Err(Errno::ENOSYS),
        Some(LockKind::Write) => Ok(HaltRequest::Halt),
    }
}

#[cfg(test)]
mod tests {
    use litefs_store::{Checksum, Txid};

    use super::*;

    fn lag_text(behind: Option<Duration>) -> String {
        String::from_utf8(lag(&Lag { behind, primary_time: None })).unwrap()
    }

    /// LiteFS's documented contents.
    #[test]
    fn contents_are_what_litefss_clients_parse() {
        assert_eq!(primary("node-1"), b"node-1\n");
        assert_eq!(lag_text(Some(Duration::ZERO)), "+000000000\n");
        assert_eq!(lag_text(Some(Duration::from_millis(1234))), "+000001234\n");
        assert_eq!(lag_text(None), "+2147483647\n");
        assert_eq!(lag_text(Some(Duration::MAX)), "+2147483647\n");
        let pos =
            Pos { txid: Txid::new(0x2f), checksum: Checksum::from_raw(0x8000_0000_dead_beef) };
        assert_eq!(position(pos), b"000000000000002f/80000000deadbeef\n");
        assert_eq!(position(Pos::ZERO), b"0000000000000000/0000000000000000\n");
    }

    #[test]
    fn halt_is_a_write_lock_of_byte_72_and_nothing_else() {
        let (write, byte) = (Some(LockKind::Write), Range::byte(72));
        assert_eq!(halt(write, byte, true), Ok(HaltRequest::Halt));
        assert_eq!(halt(write, byte, false), Err(Errno::ENOSYS));
        assert_eq!(halt(Some(LockKind::Read), byte, true), Err(Errno::ENOSYS));
        for other in [Range::byte(71), Range::byte(73), Range { start: 72, end: 73 }] {
            assert_eq!(halt(write, other, true), Err(Errno::EINVAL));
        }
        assert_eq!(halt(None, Range::byte(71), true), Err(Errno::EINVAL));
        assert_eq!(halt(None, byte, true), Ok(HaltRequest::Resume));
        assert_eq!(halt(None, byte, false), Ok(HaltRequest::Resume));
        // Closing a file gives back all of it.
        let all = Range { start: 0, end: u64::MAX };
        assert_eq!(halt(None, all, false), Ok(HaltRequest::Resume));
    }
}
