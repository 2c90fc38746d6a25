//! Mounting, and unmounting while clients may hold files open.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackingId, MountOption, Session, SessionACL, SessionUnmounter};
use litefs_store::{DbName, Pos, Store, Subscription};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::Cluster;
use crate::db::{OnShown, Shared, Watcher};
use crate::fs::Served;
use crate::handles::Handles;
use crate::mount_point;
use crate::requests::Mounted;
use crate::spin::Spin;
use crate::tree::Tree;

const DEVICE: &str = "/dev/fuse";
/// How long unmounting waits for clients to close their files.
const GRACE: Duration = Duration::from_secs(1);
/// How often it looks.
const POLL: Duration = Duration::from_millis(20);
/// How long it waits for requests that are being served.
const END: Duration = Duration::from_secs(5);

/// What to mount, and how.
#[derive(Clone)]
pub struct MountOptions {
    /// Where: an empty directory, or one that is not there yet.
    pub dir: PathBuf,
    /// Other users than the one who mounts may use it.
    pub allow_other: bool,
    /// Log each request.
    pub debug: bool,
    /// What the special files say.
    pub cluster: Arc<dyn Cluster>,
    /// Let the kernel map `-shm` files past this process where it can. `false` is for tests.
    pub passthrough: bool,
}

/// Why nothing was mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel has no FUSE.
    #[error(
        "there is no {DEVICE}: load the kernel's module (modprobe fuse), or give the container \
         the device (docker run --device {DEVICE} --cap-add SYS_ADMIN)"
    )]
    NoDevice,
    /// Mounting is not allowed.
    #[error(
        "not permitted to mount at {}: {reason}; run as root (in a container with SYS_ADMIN), or \
         install fusermount3",
        dir.display()
    )]
    NotPermitted {
        /// Where.
        dir: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The directory cannot be used.
    #[error("cannot {op} {}: {source}", dir.display())]
    Directory {
        /// What was attempted, as a verb.
        op: &'static str,
        /// The directory.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The directory has entries, which would be hidden.
    #[error("{} is not empty, it has {first}: mount at an empty directory", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// One entry.
        first: String,
    },
    /// Something that works is mounted there already.
    #[error(
        "{} is mounted already ({kind}, {device}): stop the process that serves it, or choose \
         another directory",
        dir.display()
    )]
    Mounted {
        /// Where.
        dir: PathBuf,
        /// The kind of file system.
        kind: String,
        /// What it says it is mounted from.
        device: String,
    },
    /// The data would be hidden by the mount.
    #[error(
        "the data directory {} lies inside the mount {}: choose another directory for one of them",
        data.display(), dir.display()
    )]
    HidesData {
        /// Where to mount.
        dir: PathBuf,
        /// The data directory.
        data: PathBuf,
    },
    /// Mounting failed.
    #[error("cannot mount at {}: {error}", dir.display())]
    Failed {
        /// Where.
        dir: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

/// A mounted store. Dropping it unmounts.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    view: View,
    session: Option<Running>,
    /// What the store learns from elsewhere becomes visible.
    watcher: Option<Watcher>,
    /// The tree hears of databases that appear.
    subscription: Option<Subscription>,
}

/// What a mount shows. It does not keep the mount.
#[derive(Debug, Clone)]
pub struct View(Weak<Shared>);

impl View {
    /// The position of a database that clients see; `None` if none has looked at it yet, so that
    /// the first to do so will see the newest, or if the mount is gone.
    pub fn position(&self, db: &DbName) -> Option<Pos> {
        let mounted = self.0.upgrade()?.mounted.read().get(db).cloned()?;
        Some(mounted.shown_position())
    }

    /// The locks that clients hold on a database, by LiteFS's names (`pending`, `write`, `read0`
    /// and so on): `unlocked`, `shared` or `exclusive`. `None` as above. May wait for the disk.
    pub fn locks(&self, db: &DbName) -> Option<Vec<(&'static str, &'static str)>> {
        let mounted = self.0.upgrade()?.mounted.read().get(db).cloned()?;
        Some(mounted.lock_states())
    }
}

/// A session that is being served.
#[derive(Debug)]
struct Running {
    unmounter: SessionUnmounter,
    /// The kernel's number of the connection, if known.
    connection: Option<u32>,
    stopping: Arc<AtomicBool>,
    ended: mpsc::Receiver<()>,
}

impl Mount {
    /// Mounts all databases of `store`. When this returns, clients may use them.
    ///
    /// # Errors
    /// [`MountError`]; nothing is mounted then.
    pub fn start(store: &Store, options: MountOptions) -> Result<Self, MountError> {
        let data_dir = store.dir().to_path_buf();
        check_apart(&options.dir, &data_dir)?;
        let dir = mount_point::prepare(&options.dir)?;
        check_apart(&dir, &data_dir)?;
        check_device(&dir)?;
        let failed = |error| MountError::Failed { dir: dir.clone(), error };
        let shared = Arc::new(Shared::new(store.clone()));
        let cluster = options.cluster.clone();
        let _ = shared.on_shown.set(OnShown(Box::new(move |db| cluster.shown(db))));
        let view = View(Arc::downgrade(&shared));
        let tree = Tree::new(shared.clone(), options.cluster.clone()).map_err(failed)?;
        let subscription = tree.watch();
        let watcher = Watcher::start(&shared).map_err(failed)?;
        let mounted = Mounted {
            halts: parking_lot::Mutex::default(),
            tree,
            handles: Handles::default(),
            data_dir,
            passthrough: options.passthrough,
            debug: options.debug,
        };
        let served = Served::new(mounted).map_err(failed)?;
        let spin = served.spin();
        let mut session =
            Session::new(served, &dir, &config(&options)).map_err(|error| explain(&dir, error))?;
        shared.kernel.connect(session.notifier());
        if let Some(started) = Spin::start(&session).map_err(failed)? {
            let _ = spin.set(started);
        }
        check_passthrough(&session, &shared);
        let unmounter = session.unmount_callable();
        let connection = mount_point::mounted_at(&dir).map(|mounted| mounted.minor);
        read_ahead(connection);
        let stopping = Arc::new(AtomicBool::new(false));
        let ended = serve(session, dir.clone(), stopping.clone()).map_err(failed)?;
        tracing::info!("mounted at {}", dir.display());
        let running = Running { unmounter, connection, stopping, ended };
        Ok(Self {
            dir,
            view,
            session: Some(running),
            watcher: Some(watcher),
            subscription: Some(subscription),
        })
    }

    /// Where it is mounted, without symbolic links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it shows.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Unmounts. Clients that still hold files open after a second get errors from then on.
    pub fn unmount(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        let Some(running) = self.session.take() else { return };
        self.subscription = None;
        if !running.end(&self.dir) {
            tracing::warn!("{}: requests are still served after unmounting", self.dir.display());
        }
        self.watcher = None;
    }
}

impl Running {
    /// Unmounts; false if requests are still served after a while.
    fn end(mut self, dir: &Path) -> bool {
        self.stopping.store(true, Ordering::Relaxed);
        detach(dir, &mut self.unmounter);
        let has_ended = || self.ended.recv_timeout(END) != Err(mpsc::RecvTimeoutError::Timeout);
        if has_ended() {
            return true;
        }
        // Who may not unmount by force: files that are open keep the session going.
        let Some(connection) = self.connection else { return false };
        let abort = format!("/sys/fs/fuse/connections/{connection}/abort");
        fs::write(&abort, "1").is_ok() && has_ended()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.stop();
    }
}

fn config(options: &MountOptions) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName("litefs".to_owned()),
        MountOption::Subtype("litefs".to_owned()),
        MountOption::NoAtime,
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(1);
    config
}

/// Whether the kernel takes a backing file from where those of `-shm` lie: this needs more rights
/// than mounting, and not every file system will do.
fn check_passthrough(session: &Session<Served>, shared: &Shared) {
    if !shared.passthrough.load(Ordering::Relaxed) {
        return;
    }
    // What is registered here is let go with the session.
    let registered = tempfile::tempfile_in(shared.store.dir())
        .and_then(|file| BackingId::create_raw(session, file));
    if let Err(error) = registered {
        tracing::info!("no kernel passthrough of -shm files, commits take longer: {error}");
        shared.passthrough.store(false, Ordering::Relaxed);
    }
}

/// Serves the session on threads of its own; the result hears of its end.
fn serve(
    session: Session<Served>,
    dir: PathBuf,
    stopping: Arc<AtomicBool>,
) -> io::Result<mpsc::Receiver<()>> {
    let (end, ended) = mpsc::channel();
    thread::Builder::new().name("litefs-mount".to_owned()).spawn(move || {
        let result = session.run();
        if !stopping.load(Ordering::Relaxed) {
            let why = result.map_or_else(|error| error.to_string(), |()| "unmounted".to_owned());
            tracing::error!(
                "the mount at {} has ended, though nobody told this process to end it: {why}",
                dir.display()
            );
        }
        // Fails only if nobody waits for it.
        let _ = end.send(());
    })?;
    Ok(ended)
}

/// Takes the mount away: at once if it is not in use, by force after a while.
fn detach(dir: &Path, unmounter: &mut SessionUnmounter) {
    let deadline = Instant::now() + GRACE;
    // Who is not root has fusermount3 do it, in use or not.
    let mut outcome = unmounter.unmount().map_err(|e| Errno::from_io_error(&e));
    while outcome == Err(Some(Errno::BUSY)) && Instant::now() < deadline {
        thread::sleep(POLL);
        outcome = unmount(dir, UnmountFlags::empty()).map_err(Some);
    }
    if outcome == Err(Some(Errno::BUSY)) {
        tracing::warn!("{}: unmounting although files are open", dir.display());
        // Ends the kernel's connection first, which a lazy unmount alone does not.
        outcome = unmount(dir, UnmountFlags::FORCE | UnmountFlags::DETACH).map_err(Some);
    }
    match outcome {
        // `EINVAL`: somebody else has unmounted it.
        Ok(()) | Err(Some(Errno::INVAL)) => {}
        Err(error) => {
            let error = error.map_or("unknown error".to_owned(), |error| error.to_string());
            tracing::warn!("cannot unmount {}: {error}", dir.display());
        }
    }
}

/// Has the kernel read ahead as much as a request can carry: 128 KiB are its own limit for FUSE.
/// Only root may; without it, scans are slower.
fn read_ahead(connection: Option<u32>) {
    if let Some(minor) = connection {
        let _ = fs::write(format!("/sys/class/bdi/0:{minor}/read_ahead_kb"), "1024");
    }
}

/// The mount must not hide the data. What is not there yet cannot be compared.
fn check_apart(dir: &Path, data: &Path) -> Result<(), MountError> {
    let hides = match (dir.canonicalize(), data.canonicalize()) {
        (Ok(dir), Ok(data)) => data.starts_with(dir),
        _ => data.starts_with(dir),
    };
    if hides {
        return Err(MountError::HidesData { dir: dir.to_path_buf(), data: data.to_path_buf() });
    }
    Ok(())
}

fn check_device(dir: &Path) -> Result<(), MountError> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NoDevice),
        Err(error) => {
            let reason = format!("cannot open {DEVICE}: {error}");
            Err(MountError::NotPermitted { dir: dir.to_path_buf(), reason })
        }
    }
}

/// Without the right to mount, fusermount3 is tried, which may be missing.
fn explain(dir: &Path, error: io::Error) -> MountError {
    let dir = dir.to_path_buf();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            MountError::NotPermitted { dir, reason: error.to_string() }
        }
        _ => MountError::Failed { dir, error },
    }
}
