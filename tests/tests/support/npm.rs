//! The example for express, with its packages from npm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILES: [&str; 3] = ["package.json", "app.js", "litefs.yml"];

/// A copy of the example in the build's directory, its packages installed there once.
pub fn express_example() -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/express");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("express");
    fs::create_dir_all(&dir).unwrap();
    // Each test is a process of its own; the lock ends with this function.
    let lock = fs::File::create(dir.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    for name in FILES {
        put(&dir, name, &fs::read_to_string(example.join(name)).unwrap());
    }
    let wanted = fs::read_to_string(dir.join("package.json")).unwrap();
    let installed = dir.join("installed");
    if fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-package-lock"]);
        // Where Debian puts node's headers; else node-gyp would fetch them.
        if Path::new("/usr/include/node/node.h").exists() {
            npm.env("npm_config_nodedir", "/usr");
        }
        let output = npm.current_dir(&dir).output().expect("npm is installed");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "npm install in {} failed: {error}", dir.display());
        fs::write(installed, wanted).unwrap();
    }
    dir
}

/// Writes a file, but not while another test may read what it has already.
pub fn put(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    if fs::read_to_string(&path).ok().as_deref() != Some(text) {
        fs::write(path, text).unwrap();
    }
}
