//! The model itself: each kind of image shows exactly what it may, and faults fire when they
//! should.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::storage::{File, OpenMode, Storage};

const SEEDS: u64 = 300;

fn p(path: &str) -> &Path {
    Path::new(path)
}

/// A disk with the directory /d and the file /d/f holding `bytes`, all durable.
fn disk_with(bytes: &[u8]) -> (SimDisk, Arc<dyn File>) {
    let disk = SimDisk::new();
    disk.create_dir_all(p("/d")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    let file = create(&disk, "/d/f", bytes);
    file.sync_data().unwrap();
    disk.sync_dir(p("/d")).unwrap();
    (disk, file)
}

fn create(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.open(p(path), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let len = disk.file_len(p(path)).unwrap()?;
    let mut bytes = vec![0; len as usize];
    disk.open(p(path), OpenMode::Read).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

/// What `path` holds on the image of the disk's present state.
fn after(disk: &SimDisk, kind: ImageKind, path: &str) -> Option<Vec<u8>> {
    read(&disk.image(disk.op_count(), kind), path)
}

/// All that `path` holds on the images of many seeds.
fn outcomes(
    disk: &SimDisk,
    kind: impl Fn(u64) -> ImageKind,
    path: &str,
) -> BTreeSet<Option<Vec<u8>>> {
    (0..SEEDS).map(|seed| after(disk, kind(seed), path)).collect()
}

fn subset(seed: u64) -> ImageKind {
    ImageKind::Subset { seed }
}

fn set(items: &[&[u8]]) -> BTreeSet<Option<Vec<u8>>> {
    items.iter().map(|bytes| Some(bytes.to_vec())).collect()
}

fn all_kinds(seed: u64) -> [ImageKind; 8] {
    [
        ImageKind::ProcessCrash,
        ImageKind::Prefix,
        ImageKind::DropUnsynced,
        ImageKind::Subset { seed },
        ImageKind::Torn { seed },
        ImageKind::GarbageSector { seed },
        ImageKind::RenameWithoutDirSync,
        ImageKind::LengthLost { seed },
    ]
}

#[test]
fn what_was_synced_survives_in_every_image() {
    let (disk, file) = disk_with(&[1; 2000]);
    file.write_all_at(&[2; 100], 1950).unwrap();
    file.set_len(2020).unwrap();
    file.sync_data().unwrap();
    let synced = read(&disk, "/d/f");
    create(&disk, "/d/other", &[3; 5000]);
    for seed in 0..SEEDS {
        for kind in all_kinds(seed) {
            assert_eq!(after(&disk, kind, "/d/f"), synced, "{kind:?}");
        }
    }
}

#[test]
fn a_prefix_shows_each_moment_as_it_was() {
    let (disk, file) = disk_with(b"0000");
    let mut expected = Vec::new();
    for i in 0..5u8 {
        expected.push((disk.op_count(), read(&disk, "/d/f")));
        file.write_all_at(&[i + 1], u64::from(i)).unwrap();
    }
    let mut images = disk.images();
    for (at, bytes) in expected {
        images.advance_to(at);
        assert_eq!(read(&images.image(ImageKind::Prefix), "/d/f"), bytes);
        assert_eq!(read(&images.image(ImageKind::ProcessCrash), "/d/f"), bytes);
        assert_eq!(read(&disk.image(at, ImageKind::Prefix), "/d/f"), bytes);
    }
}

#[test]
fn what_was_not_synced_is_dropped() {
    let (disk, file) = disk_with(b"old");
    file.write_all_at(b"new and longer", 0).unwrap();
    create(&disk, "/d/g", b"x").sync_data().unwrap();
    disk.create_dir_all(p("/d/sub")).unwrap();
    disk.remove_file(p("/d/f")).unwrap();
    let image = disk.image(disk.op_count(), ImageKind::DropUnsynced);
    assert_eq!(read(&image, "/d/f").unwrap(), b"old");
    assert_eq!(image.list(p("/d")).unwrap(), ["f"]);
}

#[test]
fn a_file_needs_its_directory_synced_and_that_one_its_parent() {
    let disk = SimDisk::new();
    disk.create_dir_all(p("/a/b")).unwrap();
    create(&disk, "/a/b/f", b"x").sync_data().unwrap();
    let dropped = |disk: &SimDisk| after(disk, ImageKind::DropUnsynced, "/a/b/f");
    disk.sync_dir(p("/a/b")).unwrap();
    assert_eq!(dropped(&disk), None);
    disk.sync_dir(p("/")).unwrap();
    assert_eq!(dropped(&disk), None);
    disk.sync_dir(p("/a")).unwrap();
    assert_eq!(dropped(&disk), Some(b"x".to_vec()));
}

#[test]
fn a_later_write_survives_without_an_earlier_one() {
    let (disk, file) = disk_with(b"....");
    file.write_all_at(b"AA", 0).unwrap();
    file.write_all_at(b"BB", 2).unwrap();
    let all = set(&[b"....", b"AA..", b"..BB", b"AABB"]);
    assert_eq!(outcomes(&disk, subset, "/d/f"), all);
}

#[test]
fn overlapping_writes_leave_the_older_or_the_newer_bytes() {
    let (disk, file) = disk_with(b"....");
    file.write_all_at(b"AAA", 0).unwrap();
    file.write_all_at(b"BB", 1).unwrap();
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"....", b"AAA.", b".BB.", b"ABB."]));
}

#[test]
fn an_extending_write_may_survive_as_zeros() {
    let (disk, file) = disk_with(b"..");
    file.write_all_at(b"AA", 2).unwrap();
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"..", b"..\0\0", b"..AA"]));
}

#[test]
fn a_lost_write_in_allocated_space_reads_as_zeros() {
    let (disk, file) = disk_with(b"..");
    file.allocate(6).unwrap();
    file.sync_data().unwrap();
    file.write_all_at(b"AA", 2).unwrap();
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f").unwrap(), b"..\0\0\0\0");
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"..\0\0\0\0", b"..AA\0\0"]));
}

#[test]
fn a_lost_truncation_brings_the_old_bytes_back() {
    let (disk, file) = disk_with(b"abcd");
    file.set_len(2).unwrap();
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"abcd", b"ab"]));
    assert_eq!(after(&disk, ImageKind::LengthLost { seed: 0 }, "/d/f").unwrap(), b"abcd");
}

#[test]
fn a_rename_survives_whole_or_not_at_all() {
    let (disk, _file) = disk_with(b"old");
    create(&disk, "/d/tmp", b"new").sync_data().unwrap();
    disk.sync_dir(p("/d")).unwrap();
    disk.rename(p("/d/tmp"), p("/d/f")).unwrap();
    let states: BTreeSet<_> = (0..SEEDS)
        .map(|seed| disk.image(disk.op_count(), subset(seed)))
        .map(|image| (read(&image, "/d/f"), read(&image, "/d/tmp")))
        .collect();
    let before = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    assert_eq!(states, BTreeSet::from([before, (Some(b"new".to_vec()), None)]));
}

#[test]
fn a_file_renamed_twice_never_has_two_names() {
    let (disk, _file) = disk_with(b"x");
    disk.rename(p("/d/f"), p("/d/g")).unwrap();
    disk.rename(p("/d/g"), p("/d/h")).unwrap();
    let states: BTreeSet<_> = (0..SEEDS)
        .map(|seed| disk.image(disk.op_count(), subset(seed)).list(p("/d")).unwrap())
        .collect();
    assert_eq!(states, [["f"], ["g"], ["h"]].map(|names| names.map(String::from).to_vec()).into());
}

#[test]
fn a_rename_of_an_unsynced_file_can_leave_it_empty() {
    let (disk, _file) = disk_with(b"old");
    create(&disk, "/d/tmp", b"new");
    disk.rename(p("/d/tmp"), p("/d/f")).unwrap();
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f").unwrap(), b"");
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"", b"\0\0\0", b"new"]));
}

#[test]
fn a_rename_between_directories_is_durable_once_both_are_synced() {
    let (disk, _file) = disk_with(b"x");
    disk.create_dir_all(p("/e")).unwrap();
    disk.sync_dir(p("/")).unwrap();
    disk.rename(p("/d/f"), p("/e/f")).unwrap();
    let places = |disk: &SimDisk| {
        let image = disk.image(disk.op_count(), ImageKind::DropUnsynced);
        (read(&image, "/d/f").is_some(), read(&image, "/e/f").is_some())
    };
    disk.sync_dir(p("/e")).unwrap();
    disk.sync_dir(p("/e")).unwrap();
    assert_eq!(places(&disk), (true, false));
    disk.sync_dir(p("/d")).unwrap();
    assert_eq!(places(&disk), (false, true));
}

#[test]
fn without_directory_sync_data_survives_under_old_names() {
    let (disk, file) = disk_with(b"old");
    file.write_all_at(b"OLD", 0).unwrap();
    create(&disk, "/d/tmp", b"new");
    disk.rename(p("/d/tmp"), p("/d/f")).unwrap();
    let image = disk.image(disk.op_count(), ImageKind::RenameWithoutDirSync);
    assert_eq!(image.list(p("/d")).unwrap(), ["f"]);
    assert_eq!(read(&image, "/d/f").unwrap(), b"OLD");
}

#[test]
fn a_removal_cut_short_leaves_files_but_no_stray_ones() {
    let (disk, _file) = disk_with(b"x");
    create(&disk, "/d/g", b"y").sync_data().unwrap();
    disk.sync_dir(p("/d")).unwrap();
    let start = disk.op_count();
    disk.remove_dir_all(p("/d")).unwrap();
    let lists: Vec<_> = (start..=disk.op_count())
        .map(|at| disk.image(at, ImageKind::Prefix).list(p("/d")).ok())
        .collect();
    let names = |names: &[&str]| Some(names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(lists, [names(&["f", "g"]), names(&["g"]), names(&[]), None]);
}

#[test]
fn torn_writes_are_old_or_new_by_sector() {
    let (disk, file) = disk_with(&[1; 2048]);
    file.write_all_at(&[2; 1024], 256).unwrap();
    let mut mixed = 0;
    for bytes in outcomes(&disk, |seed| ImageKind::Torn { seed }, "/d/f") {
        let bytes = bytes.unwrap();
        assert_eq!(bytes.len(), 2048);
        let parts = [0..256, 256..512, 512..1024, 1024..1280, 1280..2048];
        let values: Vec<u8> = parts.into_iter().map(|part| uniform(&bytes[part])).collect();
        assert_eq!((values[0], values[4]), (1, 1), "bytes that nobody wrote");
        mixed += usize::from(values[1..4] != [1; 3] && values[1..4] != [2; 3]);
    }
    assert_eq!(mixed, 6, "each of the mixed states of three sectors should come up");
}

fn uniform(bytes: &[u8]) -> u8 {
    assert!(bytes.iter().all(|b| *b == bytes[0]), "torn within a sector");
    bytes[0]
}

#[test]
fn garbage_stays_within_one_sector_and_within_the_write() {
    let (disk, file) = disk_with(&[1; 2048]);
    file.write_all_at(&[2; 1024], 256).unwrap();
    let sectors = [256..512, 512..1024, 1024..1280];
    let mut hit = BTreeSet::new();
    for bytes in outcomes(&disk, |seed| ImageKind::GarbageSector { seed }, "/d/f") {
        let bytes = bytes.unwrap();
        assert_eq!((uniform(&bytes[..256]), uniform(&bytes[1280..])), (1, 1));
        let spoiled: Vec<usize> = (0..3)
            .filter(|i| bytes[sectors[*i].clone()].iter().any(|b| *b != 1 && *b != 2))
            .collect();
        assert_eq!(spoiled.len(), 1);
        hit.extend(spoiled);
    }
    assert_eq!(hit.len(), 3);
}

#[test]
fn lost_lengths_keep_the_bytes_below() {
    let (disk, file) = disk_with(b"....");
    file.write_all_at(b"AAAA", 2).unwrap();
    let g = create(&disk, "/d/g", b"gg");
    g.sync_data().unwrap();
    disk.sync_dir(p("/d")).unwrap();
    let kind = |seed| ImageKind::LengthLost { seed };
    assert_eq!(outcomes(&disk, kind, "/d/f"), set(&[b"..AA"]));
    g.set_len(1).unwrap();
    assert_eq!(outcomes(&disk, kind, "/d/f"), set(&[b"..AA", b"..AAAA"]));
    assert_eq!(outcomes(&disk, kind, "/d/g"), set(&[b"gg", b"g"]));
}

#[test]
fn one_seed_gives_one_image_and_seeds_differ() {
    let (disk, file) = disk_with(&[0; 64]);
    for i in 0..64 {
        file.write_all_at(&[1], i).unwrap();
    }
    for seed in 0..20 {
        assert_eq!(after(&disk, subset(seed), "/d/f"), after(&disk, subset(seed), "/d/f"));
    }
    assert!(outcomes(&disk, subset, "/d/f").len() > SEEDS as usize / 2);
}

#[test]
fn a_durable_write_is_durable_and_nothing_else_becomes_so() {
    let (disk, file) = disk_with(&[0; 1536]);
    file.write_all_at(&[1; 512], 0).unwrap();
    assert!(file.write_durably_at(&[2; 512], 512).unwrap());
    let expected = |first| Some([[first; 512], [2; 512], [0; 512]].concat());
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f"), expected(0));
    assert_eq!(outcomes(&disk, subset, "/d/f"), [expected(0), expected(1)].into());
    disk.inject(Fault::once(1, FaultError::FailedSync));
    file.write_durably_at(&[3; 512], 512).unwrap_err();
    file.sync_data().unwrap();
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f"), expected(1), "in doubt for ever");
    disk.set_writes_durably(false);
    assert!(!file.write_durably_at(&[4; 512], 0).unwrap());
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f"), expected(1));
}

#[test]
fn a_process_crash_makes_nothing_durable() {
    let (disk, file) = disk_with(b"old");
    file.write_all_at(b"new", 0).unwrap();
    create(&disk, "/d/g", b"x");
    let crashed = disk.image(disk.op_count(), ImageKind::ProcessCrash);
    assert_eq!(read(&crashed, "/d/f").unwrap(), b"new");
    assert_eq!(crashed.op_count(), 0);
    let lost = crashed.image(0, ImageKind::DropUnsynced);
    assert_eq!((read(&lost, "/d/f").unwrap(), read(&lost, "/d/g")), (b"old".to_vec(), None));
    crashed.open(p("/d/f"), OpenMode::ReadWrite).unwrap().sync_data().unwrap();
    assert_eq!(after(&crashed, ImageKind::DropUnsynced, "/d/f").unwrap(), b"new");
    let whole = disk.image(disk.op_count(), ImageKind::Prefix);
    assert_eq!(after(&whole, ImageKind::DropUnsynced, "/d/f").unwrap(), b"new");
}

#[test]
fn an_image_can_be_crashed_again_and_leaves_its_origin_alone() {
    let (disk, file) = disk_with(b"one");
    file.write_all_at(b"two", 0).unwrap();
    let image = disk.image(disk.op_count(), ImageKind::DropUnsynced);
    let again = image.open(p("/d/f"), OpenMode::ReadWrite).unwrap();
    again.write_all_at(b"xx", 1).unwrap();
    assert_eq!(outcomes(&image, subset, "/d/f"), set(&[b"one", b"oxx"]));
    assert_eq!(read(&disk, "/d/f").unwrap(), b"two");
}

#[test]
fn a_failed_sync_leaves_its_writes_in_doubt_for_ever() {
    let (disk, file) = disk_with(b"....");
    file.write_all_at(b"AA", 0).unwrap();
    disk.inject(Fault::once(1, FaultError::FailedSync));
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(5));
    file.write_all_at(b"BB", 2).unwrap();
    file.sync_data().unwrap();
    assert_eq!(read(&disk, "/d/f").unwrap(), b"AABB");
    assert_eq!(after(&disk, ImageKind::DropUnsynced, "/d/f").unwrap(), b"..BB");
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"..BB", b"AABB"]));
    file.write_all_at(b"C", 0).unwrap();
    file.sync_data().unwrap();
    assert_eq!(outcomes(&disk, subset, "/d/f"), set(&[b"C.BB", b"CABB"]));
}

#[test]
fn a_failed_directory_sync_leaves_its_names_in_doubt_for_ever() {
    let (disk, _file) = disk_with(b"x");
    disk.rename(p("/d/f"), p("/d/g")).unwrap();
    disk.inject(Fault::once(1, FaultError::Eio).on(CallKind::SyncDir));
    disk.sync_dir(p("/d")).unwrap_err();
    create(&disk, "/d/h", b"y");
    disk.sync_dir(p("/d")).unwrap();
    let lists: BTreeSet<_> = (0..SEEDS)
        .map(|seed| disk.image(disk.op_count(), subset(seed)).list(p("/d")).unwrap())
        .collect();
    assert_eq!(
        lists,
        [["f", "h"], ["g", "h"]].map(|names| names.map(String::from).to_vec()).into()
    );
}

#[test]
fn a_fault_hits_the_nth_call_of_its_kind_and_path_only() {
    let (disk, file) = disk_with(b"x");
    let other = create(&disk, "/d/other", b"x");
    disk.inject(Fault::once(2, FaultError::Eio).on(CallKind::Read).at("/d/f"));
    let mut buf = [0];
    let mut results = Vec::new();
    for _ in 0..3 {
        other.read_at(&mut buf, 0).unwrap();
        file.write_all_at(b"y", 0).unwrap();
        results.push(file.read_at(&mut buf, 0).is_ok());
    }
    assert_eq!(results, [true, false, true]);
    assert_eq!((disk.faults_fired(), disk.calls(CallKind::Read)), (1, 6));
}

#[test]
fn a_lasting_fault_lasts_until_it_is_cleared() {
    let (disk, file) = disk_with(b"x");
    disk.inject(Fault::forever(2, FaultError::Enospc).on(CallKind::Write));
    file.write_all_at(b"y", 0).unwrap();
    for _ in 0..3 {
        let error = file.write_all_at(b"z", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    disk.clear_faults();
    file.write_all_at(b"z", 0).unwrap();
}

#[test]
fn every_kind_of_call_can_be_made_to_fail() {
    for kind in CallKind::ALL {
        let (disk, file) = disk_with(b"x");
        disk.inject(Fault::once(1, FaultError::Eio).on(kind));
        let failed = call_all(&disk, &*file);
        assert_eq!(failed, [kind], "exactly the calls of this kind should fail");
        assert_eq!(disk.faults_fired(), 1);
    }
}

/// Makes one call of each kind; returns which failed.
fn call_all(disk: &SimDisk, file: &dyn File) -> Vec<CallKind> {
    let mut failed = Vec::new();
    let mut note = |kind, result: io::Result<()>| {
        if result.is_err() {
            failed.push(kind);
        }
    };
    note(CallKind::Open, disk.open(p("/d/f"), OpenMode::ReadWrite).map(drop));
    note(CallKind::Create, disk.open(p("/d/n"), OpenMode::Create).map(drop));
    note(CallKind::Read, file.read_at(&mut [0], 0).map(drop));
    note(CallKind::Write, file.write_all_at(b"y", 0));
    note(CallKind::SetLen, file.set_len(9));
    note(CallKind::Allocate, file.allocate(10));
    note(CallKind::Len, file.len().map(drop));
    note(CallKind::SyncData, file.sync_data());
    note(CallKind::Rename, disk.rename(p("/d/f"), p("/d/g")));
    note(CallKind::CreateDir, disk.create_dir_all(p("/e")));
    note(CallKind::List, disk.list(p("/d")).map(drop));
    note(CallKind::SyncDir, disk.sync_dir(p("/d")));
    note(CallKind::LockDir, disk.lock_dir(p("/d")).map(drop));
    create(disk, "/d/last", b"");
    note(CallKind::RemoveFile, disk.remove_file(p("/d/last")));
    note(CallKind::RemoveDir, disk.remove_dir_all(p("/d")));
    failed
}

#[test]
fn a_short_write_leaves_a_prefix() {
    let (disk, file) = disk_with(b"....");
    disk.inject(Fault::once(1, FaultError::ShortWrite(3)));
    assert_eq!(file.write_all_at(b"ABCD", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(read(&disk, "/d/f").unwrap(), b"ABC.");
    disk.inject(Fault::once(1, FaultError::ShortWrite(100)));
    file.write_all_at(b"1234", 0).unwrap_err();
    assert_eq!(read(&disk, "/d/f").unwrap(), b"123.");
}

#[test]
fn a_full_disk_takes_what_fits_and_works_again_when_space_is_freed() {
    let (disk, file) = disk_with(&[1; 4096]);
    disk.set_capacity(Some(3 * 4096));
    let error = file.write_all_at(&[2; 3 * 4096], 4096).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 3 * 4096, "the part that fits is written");
    file.write_all_at(&[3; 3 * 4096], 0).unwrap();
    assert_eq!(file.allocate(4 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 3 * 4096, "a reservation fails whole");

    let other = disk.open(p("/d/other"), OpenMode::Create).unwrap();
    other.write_all_at(b"x", 0).unwrap_err();
    disk.remove_file(p("/d/f")).unwrap();
    other.write_all_at(b"x", 0).unwrap_err();
    drop(file);
    other.write_all_at(b"x", 0).unwrap();
    assert_eq!(disk.used_bytes(), 4096);
    other.set_len(0).unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn reserved_space_can_always_be_written() {
    let (disk, file) = disk_with(b"");
    disk.set_capacity(Some(2 * 4096));
    file.allocate(2 * 4096).unwrap();
    file.write_all_at(&[1; 2 * 4096], 0).unwrap();
    file.write_all_at(b"x", 2 * 4096).unwrap_err();
}

#[test]
fn an_operation_is_described_by_path() {
    let (disk, file) = disk_with(b"x");
    let at = disk.op_count();
    file.write_all_at(b"yy", 7).unwrap();
    disk.rename(p("/d/f"), p("/d/g")).unwrap();
    let mut images = disk.images();
    images.advance_to(at);
    assert_eq!(images.describe(), "write 2 bytes at 7 of /d/f");
    images.advance_to(at + 1);
    assert_eq!(images.describe(), "rename /d/f to g in /d");
    images.advance_to(images.op_count());
    assert_eq!(images.describe(), "end of the log");
}
