//! What a task was started from is wanted again: its code when its host dies, what a registry sent when the task is started anew,
//! which may be when no registry answers. Tasks share a folder of both, from which goes what nobody has used for two weeks
//! ([`node::artifacts`]). A task looks at its own once, as it starts, and may run for months: so it says each day that it uses it.

use std::time::Duration;

/// How often it is said.
pub const EVERY: Duration = Duration::from_secs(24 * 3600);

/// Does this every so often, for as long as this process runs.
pub async fn keep(every: Duration, what: impl Fn() + Clone + Send + 'static) {
    loop {
        tokio::time::sleep(every).await;
        if let Err(cause) = tokio::task::spawn_blocking(what.clone()).await {
            tracing::warn!(%cause, "what the task uses is not kept as used");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Instant, SystemTime};

    use model::Digest;
    use node::artifacts::Pulled;

    use super::*;

    #[tokio::test]
    async fn what_a_task_runs_from_is_used_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let pulled = Pulled::of(dir.path(), &Digest::of(b"pin"));
        pulled.keep(b"component").unwrap();
        let folder = std::fs::read_dir(dir.path().join("cache/pulled")).unwrap();
        let [file] = &folder.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()[..] else { panic!("one file") };
        let keeps = tokio::spawn(keep(Duration::from_millis(5), move || pulled.still_used()));
        for _ in 0..2 {
            let long_ago = SystemTime::now() - Duration::from_secs(20 * 24 * 3600);
            File::options().append(true).open(file).unwrap().set_modified(long_ago).unwrap();
            let until = Instant::now() + Duration::from_secs(60);
            while std::fs::metadata(file).unwrap().modified().unwrap() == long_ago {
                assert!(Instant::now() < until, "nobody says that it is used");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        keeps.abort();
    }
}
