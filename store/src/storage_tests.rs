//! The contract of [`Storage`], [`File`] and [`FileCache`], run on the real file system and on the
//! simulated one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::filecache::{CachedFile, FileCache};
use crate::sim::{CallKind, Fault, FaultError, SimDisk};
use crate::storage::{DirLock, File, OpenMode, OsStorage, Storage};

/// Runs a test on both, in an empty directory.
fn on_both(test: impl Fn(Arc<dyn Storage>, &Path)) {
    let temp = tempfile::tempdir().unwrap();
    test(Arc::new(OsStorage), temp.path());
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/tmp/test")).unwrap();
    test(Arc::new(disk), Path::new("/tmp/test"));
}

fn create(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Arc<dyn File> {
    let file = storage.open(path, OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn read(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn read_path(storage: &dyn Storage, path: &Path) -> Vec<u8> {
    read(&*storage.open(path, OpenMode::Read).unwrap())
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().expect("should fail").kind()
}

#[test]
fn open_modes_create_keep_and_empty() {
    on_both(|storage, dir| {
        let path = dir.join("f");
        assert_eq!(kind(storage.open(&path, OpenMode::Read)), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.open(&path, OpenMode::ReadWrite)), io::ErrorKind::NotFound);
        let parentless = storage.open(&dir.join("no/f"), OpenMode::Create);
        assert_eq!(kind(parentless), io::ErrorKind::NotFound);
        let file = storage.open(&path, OpenMode::Create).unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        for mode in [OpenMode::Read, OpenMode::ReadWrite, OpenMode::Create] {
            assert_eq!(read(&*storage.open(&path, mode).unwrap()), b"abc");
        }
        storage.open(&path, OpenMode::Read).unwrap().write_all_at(b"x", 0).unwrap_err();
        assert_eq!(read(&*storage.open(&path, OpenMode::CreateNew).unwrap()), b"");
        assert_eq!(read(&*file), b"");
        assert_eq!(kind(storage.open(dir, OpenMode::ReadWrite)), io::ErrorKind::IsADirectory);
        assert_eq!(
            kind(storage.open(&path.join("x"), OpenMode::Create)),
            io::ErrorKind::NotADirectory
        );
    });
}

#[test]
fn reads_are_short_only_at_the_end() {
    on_both(|storage, dir| {
        let file = create(&*storage, &dir.join("f"), &[7; 5000]);
        let mut buf = [0; 6000];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 5000);
        assert_eq!(file.read_at(&mut buf[..100], 4000).unwrap(), 100);
        assert_eq!(file.read_at(&mut buf, 4999).unwrap(), 1);
        assert_eq!(file.read_at(&mut buf, 5000).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, 9000).unwrap(), 0);
        assert_eq!(kind(file.read_exact_at(&mut buf[..2], 4999)), io::ErrorKind::UnexpectedEof);
        file.read_exact_at(&mut [], 9000).unwrap();
    });
}

#[test]
fn gaps_extensions_and_reservations_read_as_zeros() {
    on_both(|storage, dir| {
        let file = create(&*storage, &dir.join("f"), b"ab");
        file.write_all_at(b"c", 4).unwrap();
        assert_eq!(read(&*file), b"ab\0\0c");
        file.set_len(1).unwrap();
        file.set_len(3).unwrap();
        assert_eq!(read(&*file), b"a\0\0");
        file.allocate(2).unwrap();
        assert_eq!(read(&*file), b"a\0\0");
        file.allocate(5000).unwrap();
        file.allocate(0).unwrap();
        assert_eq!(file.len().unwrap(), 5000);
        assert!(read(&*file)[1..].iter().all(|b| *b == 0));
        file.sync_data().unwrap();
    });
}

#[test]
fn a_durable_write_writes_all_or_refuses_and_writes_nothing() {
    on_both(|storage, dir| {
        let file = create(&*storage, &dir.join("f"), &[1; 8192]);
        file.sync_data().unwrap();
        let mut expected = vec![1; 8192];
        // Its first half is in the kernel's cache, from the write before.
        for (number, offset, len) in [(2, 512, 1024), (3, 1536, 4608), (4, 0, 8192)] {
            if file.write_durably_at(&vec![number; len], offset as u64).unwrap() {
                expected[offset..offset + len].fill(number);
            }
            assert!(read(&*file) == expected, "after write {number}");
        }
        for (offset, len) in [(1, 512), (512, 511), (0, 0), (8, 8)] {
            assert!(!file.write_durably_at(&vec![9; len], offset).unwrap());
            assert!(read(&*file) == expected, "after a write of {len} at {offset}");
        }
        // Renamed and removed: the handle stays usable.
        storage.rename(&dir.join("f"), &dir.join("g")).unwrap();
        create(&*storage, &dir.join("f"), b"another");
        file.write_durably_at(&[5; 512], 0).unwrap();
        assert_eq!(read_path(&*storage, &dir.join("f")), b"another");
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_system_without_direct_writes_refuses_them() {
    let file = OsStorage.open(Path::new("/proc/self/comm"), OpenMode::ReadWrite).unwrap();
    assert!(!file.write_durably_at(&[b'x'; 512], 0).unwrap());
    assert!(!file.write_durably_at(&[b'x'; 512], 0).unwrap());
}

#[test]
fn directories_list_rename_and_go_with_their_content() {
    on_both(|storage, dir| {
        let (a, b) = (dir.join("a"), dir.join("b"));
        assert_eq!(kind(storage.list(&a)), io::ErrorKind::NotFound);
        storage.create_dir_all(&a.join("x/y")).unwrap();
        storage.create_dir_all(&a.join("x")).unwrap();
        for name in ["2", "10", "1"] {
            create(&*storage, &a.join(name), b"");
        }
        assert_eq!(storage.list(&a).unwrap(), ["1", "10", "2", "x"]);
        create(&*storage, &a.join("x/y/f"), b"deep");
        storage.sync_dir(&a).unwrap();
        storage.rename(&a, &b).unwrap();
        assert_eq!(kind(storage.list(&a)), io::ErrorKind::NotFound);
        assert_eq!(read_path(&*storage, &b.join("x/y/f")), b"deep");
        assert_eq!(kind(storage.rename(&b.join("1"), &b.join("x"))), io::ErrorKind::IsADirectory);
        assert_eq!(kind(storage.rename(&b.join("x"), &b.join("1"))), io::ErrorKind::NotADirectory);
        assert_eq!(kind(storage.rename(&b, &b.join("x/b"))), io::ErrorKind::InvalidInput);
        storage.create_dir_all(&a).unwrap();
        assert_eq!(kind(storage.rename(&a, &b)), io::ErrorKind::DirectoryNotEmpty);
        storage.remove_dir_all(&b).unwrap();
        assert_eq!(storage.list(dir).unwrap(), ["a"]);
        assert_eq!(kind(storage.remove_dir_all(&b)), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.sync_dir(&b)), io::ErrorKind::NotFound);
    });
}

#[test]
fn missing_files_are_told_from_present_ones() {
    on_both(|storage, dir| {
        let path = dir.join("f");
        assert_eq!(storage.file_len(&path).unwrap(), None);
        assert_eq!(storage.file_len(&dir.join("no/f")).unwrap(), None);
        assert_eq!(kind(storage.remove_file(&path)), io::ErrorKind::NotFound);
        assert_eq!(kind(storage.rename(&path, &dir.join("g"))), io::ErrorKind::NotFound);
        create(&*storage, &path, b"abc");
        assert_eq!(storage.file_len(&path).unwrap(), Some(3));
        storage.remove_file(&path).unwrap();
        assert_eq!(storage.file_len(&path).unwrap(), None);
    });
}

#[test]
fn a_file_renamed_over_or_removed_stays_usable() {
    on_both(|storage, dir| {
        let (f, tmp) = (dir.join("f"), dir.join("tmp"));
        let old = create(&*storage, &f, b"old");
        let new = create(&*storage, &tmp, b"new");
        storage.rename(&tmp, &f).unwrap();
        assert_eq!((read(&*old), read(&*new)), (b"old".to_vec(), b"new".to_vec()));
        assert_eq!(read_path(&*storage, &f), b"new");
        assert_eq!(storage.list(dir).unwrap(), ["f"]);
        storage.remove_file(&f).unwrap();
        new.write_all_at(b"er", 3).unwrap();
        assert_eq!(read(&*new), b"newer");
    });
}

#[test]
fn a_locked_directory_is_refused_with_the_holder_until_released() {
    on_both(|storage, dir| {
        let lock: Box<dyn DirLock> = storage.lock_dir(dir).unwrap();
        let error = storage.lock_dir(dir).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let text = error.to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains(dir.to_str().unwrap()), "{text}");
        drop(lock);
        storage.lock_dir(dir).unwrap();
        assert_eq!(storage.list(dir).unwrap(), ["lock"]);
        assert_eq!(kind(storage.lock_dir(&dir.join("no"))), io::ErrorKind::NotFound);
    });
}

/// `count` synced files of one byte each, their number, behind a cache of `cap`.
fn cached_files(
    storage: &Arc<dyn Storage>,
    dir: &Path,
    cap: usize,
    count: u8,
) -> (Arc<FileCache>, Vec<CachedFile>) {
    let cache = FileCache::new(storage.clone(), cap);
    let paths: Vec<PathBuf> = (0..count).map(|i| dir.join(format!("f{i}"))).collect();
    for (i, path) in paths.iter().enumerate() {
        create(&**storage, path, &[i as u8]);
    }
    let files = paths.into_iter().map(|path| cache.file(path)).collect();
    (cache, files)
}

#[test]
fn the_cache_reopens_files_and_keeps_to_its_cap() {
    on_both(|storage, dir| {
        let (cache, files) = cached_files(&storage, dir, 3, 10);
        assert_eq!(cache.open_count(), 0);
        for _ in 0..3 {
            for (i, file) in files.iter().enumerate() {
                assert_eq!(read(&*file.get().unwrap()), [i as u8]);
                assert!(cache.open_count() <= 3);
            }
        }
        assert_eq!(cache.open_count(), 3);
        drop(files);
        assert_eq!(cache.open_count(), 0);
    });
}

#[test]
fn a_file_used_again_and_again_is_spared() {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let (_cache, files) = cached_files(&storage, Path::new("/"), 4, 20);
    files[0].get().unwrap();
    let opens = disk.calls(CallKind::Open);
    for file in &files[1..] {
        file.get().unwrap();
        files[0].get().unwrap();
    }
    assert_eq!(
        disk.calls(CallKind::Open) - opens,
        19,
        "the hot file should not have been reopened"
    );
}

#[test]
fn a_file_in_use_is_not_closed() {
    on_both(|storage, dir| {
        let (cache, files) = cached_files(&storage, dir, 2, 5);
        let held: Vec<_> = files[..3].iter().map(|file| file.get().unwrap()).collect();
        assert_eq!(cache.open_count(), 3, "over the cap rather than refused");
        files[3].get().unwrap();
        for (i, file) in held.iter().enumerate() {
            assert!(Arc::ptr_eq(file, &files[i].get().unwrap()));
        }
        drop(held);
        files[4].get().unwrap();
        assert!(cache.open_count() <= 2);
    });
}

#[test]
fn keep_open_survives_being_renamed_over_and_removed() {
    on_both(|storage, dir| {
        let (cache, files) = cached_files(&storage, dir, 2, 6);
        files[0].keep_open().unwrap();
        files[1].keep_open().unwrap();
        create(&*storage, &dir.join("tmp"), b"new");
        storage.rename(&dir.join("tmp"), &files[0].path()).unwrap();
        storage.remove_file(&files[1].path()).unwrap();
        for file in &files[2..] {
            file.get().unwrap();
            assert!(cache.open_count() <= 3, "the two kept ones and one at a time");
        }
        assert_eq!(read(&*files[0].get().unwrap()), [0]);
        assert_eq!(read(&*files[1].get().unwrap()), [1]);
    });
}

#[test]
fn an_adopted_file_is_reopened_by_its_path() {
    on_both(|storage, dir| {
        let (cache, files) = cached_files(&storage, dir, 1, 2);
        let path = dir.join("new");
        let adopted = cache.adopt(path.clone(), create(&*storage, &path, b"adopted"));
        assert_eq!(cache.open_count(), 1);
        files[0].get().unwrap();
        assert_eq!(cache.open_count(), 1);
        assert_eq!(read(&*adopted.get().unwrap()), b"adopted");
    });
}

#[test]
fn a_file_that_cannot_be_opened_leaves_no_trace_in_the_count() {
    on_both(|storage, dir| {
        let cache = FileCache::new(storage.clone(), 2);
        let file = cache.file(dir.join("f"));
        assert_eq!(kind(file.get()), io::ErrorKind::NotFound);
        assert_eq!(kind(file.keep_open()), io::ErrorKind::NotFound);
        assert_eq!(cache.open_count(), 0);
        create(&*storage, &dir.join("f"), b"x");
        file.get().unwrap();
        assert_eq!(cache.open_count(), 1);
    });
}

#[test]
fn a_file_with_unsynced_writes_is_synced_before_it_is_closed() {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let (cache, files) = cached_files(&storage, Path::new("/"), 2, 4);
    files[0].get().unwrap().write_all_at(b"w", 0).unwrap();
    files[1].get().unwrap();
    files[2].get().unwrap();
    assert_eq!(disk.calls(CallKind::SyncData), 0, "there was a clean file to close");
    files[2].get().unwrap().write_all_at(b"w", 0).unwrap();
    files[3].get().unwrap();
    assert_eq!(disk.calls(CallKind::SyncData), 1);
    assert_eq!(cache.open_count(), 2);
}

#[test]
fn a_failed_sync_is_never_forgotten_nor_hidden_by_a_reopen() {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let (cache, files) = cached_files(&storage, Path::new("/"), 1, 3);
    files[0].get().unwrap().write_all_at(b"w", 0).unwrap();
    disk.inject(Fault::once(1, FaultError::FailedSync));
    files[1].get().unwrap();
    assert_eq!(disk.faults_fired(), 1, "the cache tried to make room");
    files[2].get().unwrap();
    files[1].get().unwrap();
    assert!(cache.open_count() <= 2, "the failed file and one more");
    for _ in 0..2 {
        let error = files[0].get().unwrap().sync_data().unwrap_err();
        assert!(error.to_string().contains("earlier sync"), "{error}");
    }
    assert_eq!(disk.faults_fired(), 1);
}

#[test]
fn what_was_written_durably_is_read_from_memory_until_it_is_overwritten() {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let (_cache, files) = cached_files(&storage, Path::new("/"), 4, 2);
    let file = files[0].get().unwrap();
    file.allocate(4096).unwrap();
    assert!(file.write_durably_at(&[7; 1024], 512).unwrap());
    let read_part = |offset| {
        let mut buf = [0; 4];
        file.read_exact_at(&mut buf, offset).unwrap();
        buf
    };
    let reads = disk.calls(CallKind::Read);
    assert_eq!(read_part(600), [7; 4]);
    assert_eq!(disk.calls(CallKind::Read), reads, "from memory");
    assert_eq!(read_part(510), [0, 0, 7, 7]);
    file.write_all_at(&[8; 2], 601).unwrap();
    assert_eq!(read_part(600), [7, 8, 8, 7]);
    assert!(disk.calls(CallKind::Read) > reads);
}

#[test]
fn a_durable_write_that_failed_fails_every_later_sync() {
    let disk = Arc::new(SimDisk::new());
    let storage: Arc<dyn Storage> = disk.clone();
    let (_cache, files) = cached_files(&storage, Path::new("/"), 4, 1);
    let file = files[0].get().unwrap();
    disk.inject(Fault::once(1, FaultError::Enospc).on(CallKind::Write));
    assert_eq!(kind(file.write_durably_at(&[1; 512], 0)), io::ErrorKind::StorageFull);
    file.sync_data().expect("only space was missing");
    disk.inject(Fault::once(1, FaultError::Eio).on(CallKind::SyncData));
    file.write_durably_at(&[1; 512], 0).unwrap_err();
    for result in [file.sync_data(), file.write_durably_at(&[1; 512], 0).map(|_| ())] {
        assert!(result.unwrap_err().to_string().contains("earlier sync"));
    }
}

#[test]
fn threads_that_share_a_small_cache_read_their_own_files() {
    on_both(|storage, dir| {
        let (cache, files) = cached_files(&storage, dir, 3, 9);
        let rounds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for start in 0..4 {
                let (files, rounds) = (&files, &rounds);
                scope.spawn(move || {
                    for step in 0..500 {
                        let i = (start * 3 + step * 5) % 8;
                        assert_eq!(read(&*files[i].get().unwrap()), [i as u8]);
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(rounds.load(Ordering::Relaxed), 2000);
        // Files in use may have pushed the cache over its cap; the next file opened brings it back.
        files[8].get().unwrap();
        assert_eq!(cache.open_count(), 3);
    });
}
