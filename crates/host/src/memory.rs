//! How much memory this process has: asked of a file that is opened before there is none to open any more.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

static STATUS: OnceLock<Option<File>> = OnceLock::new();

fn status() -> Option<&'static File> {
    STATUS.get_or_init(|| File::open("/proc/self/status").ok()).as_ref()
}

/// Opens the file.
pub(crate) fn prepare() {
    if status().is_none() {
        tracing::warn!("this kernel does not say how much memory a process has");
    }
}

/// Resident memory of this process, bytes; 0 where the kernel does not say.
pub(crate) fn resident() -> u64 {
    let mut text = [0; 4096];
    let read = status().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or_default();
    let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default());
    let kib = text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}
