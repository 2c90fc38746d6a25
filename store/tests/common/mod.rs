//! What tests of whole stores on real directories share.

use std::path::Path;

/// Copies a directory as it is now: what a process that is killed just then leaves.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A page's content that tells which page and which writing it is.
pub fn page(number: u32, version: u32, size: usize) -> Vec<u8> {
    let word = (u64::from(number) << 32 | u64::from(version)).to_be_bytes();
    word.iter().copied().cycle().take(size).collect()
}
