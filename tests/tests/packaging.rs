//! Risk: what is shipped beside the program does not fit it: the unit, the container files, what
//! `make install` puts where, the word to systemd that the node is ready.

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod daemon;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use daemon::{LONG, done, free_ports};

const BINARY: &str = env!("CARGO_BIN_EXE_litefs-daemon");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Runs a command that must succeed; returns all that it printed.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).unwrap();
    assert!(output.status.success(), "{command:?}: {printed}");
    printed
}

/// Everything that `make install` put below the directory.
fn install(dest: &Path) -> Vec<PathBuf> {
    let mut make = Command::new("make");
    make.arg("install").arg(format!("DESTDIR={}", dest.display())).current_dir(root());
    make.args(["PREFIX=/opt/litefs", &format!("PROGRAM={BINARY}")]);
    run(&mut make);
    let mut files = Vec::new();
    let mut directories = vec![dest.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => directories.push(entry),
                false => files.push(entry.strip_prefix(dest).unwrap().to_owned()),
            }
        }
    }
    files
}

#[test]
fn make_install_puts_everything_below_prefix() {
    let dest = tempfile::tempdir().unwrap();
    let files = install(dest.path());
    for needed in [
        "bin/litefs-node",
        "lib/systemd/system/litefs-node.service",
        "share/man/man1/litefs-node.1",
        "share/man/man1/litefs-node-mount.1",
        "share/bash-completion/completions/litefs-node",
        "share/zsh/site-functions/_litefs-node",
        "share/fish/vendor_completions.d/litefs-node.fish",
        "share/doc/litefs-node/litefs.yml",
    ] {
        let path = Path::new("opt/litefs").join(needed);
        assert!(files.contains(&path), "{needed} is missing in {files:?}");
        assert!(fs::metadata(dest.path().join(path)).unwrap().len() > 100, "{needed} is empty");
    }
    assert!(files.iter().all(|file| file.starts_with("opt/litefs")), "{files:?}");
    let prefix = dest.path().join("opt/litefs");
    let unit = fs::read_to_string(prefix.join("lib/systemd/system/litefs-node.service")).unwrap();
    assert!(unit.contains("\nExecStart=/opt/litefs/bin/litefs-node mount "), "{unit}");
    let program = prefix.join("bin/litefs-node");
    let example = prefix.join("share/doc/litefs-node/litefs.yml");
    run(Command::new(program).args(["config", "check"]).arg(example));
    let script = prefix.join("share/bash-completion/completions/litefs-node");
    run(Command::new("bash").arg("-n").arg(script));
}

/// systemd's own judgement of the unit, alone and with the drop-in. It prints what it ignores.
#[test]
fn systemd_understands_the_unit_and_the_drop_in() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not there");
        return;
    }
    let dest = tempfile::tempdir().unwrap();
    install(dest.path());
    let installed = dest.path().join("opt/litefs/lib/systemd/system/litefs-node.service");
    let unit = dest.path().join("litefs-node.service");
    let text = fs::read_to_string(installed).unwrap();
    // The program must be where the unit says.
    let bin = dest.path().join("opt/litefs/bin");
    let text = text.replace("/opt/litefs/bin", bin.to_str().unwrap());
    fs::write(&unit, text.replace("Documentation=man:litefs-node(1)\n", "")).unwrap();
    let verify = || run(Command::new("systemd-analyze").arg("verify").arg(&unit));
    // It looks at the host's own units, too; those are not ours to judge.
    let ours = |printed: &str| printed.contains("litefs");
    assert!(!ours(&verify()), "{}", verify());
    let drop_in = dest.path().join("litefs-node.service.d");
    fs::create_dir(&drop_in).unwrap();
    fs::copy(root().join("packaging/without-mount.conf"), drop_in.join("without-mount.conf"))
        .unwrap();
    assert!(!ours(&verify()), "{}", verify());
}

#[test]
fn systemd_is_told_when_the_mount_is_there_and_when_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let [port, _] = free_ports();
    let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let (config, mount) = (dir.path().join("litefs.yml"), dir.path().join("mnt"));
    let text = format!(
        "data:\n  dir: {0}/data\nfuse:\n  dir: {0}/mnt\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let mut node = Command::new(BINARY)
        .args(["mount", "--config", config.to_str().unwrap()])
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let next = || {
        let mut message = [0; 256];
        let len = socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..len].to_vec()).unwrap()
    };
    assert_eq!(next().trim(), "READY=1");
    assert!(mount.join(".lag").exists());
    let kill = Command::new("kill").arg(node.id().to_string()).status();
    assert_eq!(next().trim(), "STOPPING=1");
    assert!(node.wait().unwrap().success() && kill.unwrap().success());
}

/// The files for containers name what there is: keys that are known, flags that are taken.
#[test]
fn the_container_files_fit_the_program() {
    let text = fs::read_to_string(root().join("packaging/kubernetes.yml")).unwrap();
    let (_, config) = text.split_once("litefs.yml: |\n").unwrap();
    let config: String = config
        .lines()
        .map_while(|line| line.strip_prefix("    "))
        .map(|line| format!("{line}\n"))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("litefs.yml");
    fs::write(&path, config).unwrap();
    for pod in ["app-0", "app-1"] {
        let mut check = Command::new(BINARY);
        run(check.args(["config", "check"]).arg(&path).env("HOSTNAME", pod));
    }
    let python = "import sys, yaml; print(len(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let documents = Command::new("python3")
        .args(["-c", python])
        .arg(root().join("packaging/kubernetes.yml"))
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&documents.stderr).into_owned();
    if !error.contains("No module named 'yaml'") {
        assert_eq!(String::from_utf8_lossy(&documents.stdout).trim(), "3", "{error}");
    }
    done(&["mount", "--help"]);
}
