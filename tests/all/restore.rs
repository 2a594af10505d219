//! The data directory as a whole, copied while the platform is stopped: the copy serves elsewhere with all there was, a file of
//! it alone in the place of a newer one is refused by name. What can be made again is made again where it is missing.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sidereal_tests::platform::{Platform, until, write_app};

const FLAGS: &[&str] = &["--shards", "1"];

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success(), "{copied}");
}

/// Answers of an app that is coming up are waited for; the body of the first one.
fn body(platform: &Platform, app: &str) -> String {
    let (host, mut body) = (format!("{app}.localhost"), String::new());
    let answered = || {
        let answer = platform.get(&host, "/").ok().filter(|answer| answer.status == 200);
        body = answer.map(|answer| answer.body).unwrap_or_default();
        !body.is_empty()
    };
    until(Duration::from_secs(20), answered).unwrap_or_else(|cause| panic!("{app}: {cause}"));
    body
}

/// Counts, and says up to what.
fn count(platform: &Platform) -> u64 {
    let body = body(platform, "shop");
    let digits: String = body.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{body:?} has no number"))
}

fn stopped(mut platform: Platform) {
    let ended = platform.stop(Duration::from_secs(20)).unwrap();
    assert!(ended.success(), "{ended}");
}

fn shop(dir: &Path) {
    write_app(dir, "shop", "kv-counter", "[components.main.links]\n\"wasi:keyvalue\" = \"embedded\"").unwrap();
}

#[test]
fn a_copy_of_the_data_directory_serves_elsewhere_with_all_there_was() {
    let [dir, kept, elsewhere, app, later] = [(); 5].map(|()| tempfile::tempdir().unwrap());
    shop(app.path());
    write_app(later.path(), "later", "hello", "").unwrap();
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    platform.secret("door", "open sesame").unwrap();
    assert_eq!([(); 3].map(|()| count(&platform)), [1, 2, 3]);
    let status = platform.ok(&["status", "shop"]).unwrap();
    stopped(platform);
    copy(dir.path(), kept.path());

    // What happens after the copy is not in it.
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    assert_eq!(count(&platform), 4);
    platform.ok(&["deploy", later.path().to_str().unwrap()]).unwrap();
    stopped(platform);
    drop(dir);

    copy(kept.path(), elsewhere.path());
    let platform = Platform::start(elsewhere.path(), FLAGS).unwrap();
    assert_eq!(count(&platform), 4, "three were counted when it was copied");
    assert_eq!(platform.ok(&["status", "shop"]).unwrap()["desired"], status["desired"]);
    assert_eq!(platform.get("later.localhost", "/").unwrap().status, 404);
    assert!(platform.ok(&["secret", "list"]).unwrap().to_string().contains("door"));
    platform.ok(&["audit", "verify"]).unwrap();
    // It goes on as any other.
    platform.ok(&["deploy", later.path().to_str().unwrap()]).unwrap();
    body(&platform, "later");
    assert_eq!(count(&platform), 5);
    stopped(platform);
}

/// Of all compiled code, how many pieces there are.
fn compiled(dir: &Path) -> usize {
    let files = |dir: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.path()).collect());
        entries.unwrap_or_default()
    };
    let code = files(&dir.join("cache")).into_iter().flat_map(|engine| files(&engine));
    code.filter(|file| file.extension().is_some_and(|kind| kind == "cwasm")).count()
}

/// As after an upgrade with another engine.
#[test]
fn without_compiled_code_what_served_has_it_made_again_and_calls_wait() {
    let [dir, app] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    shop(app.path());
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(count(&platform), 1);
    stopped(platform);
    let forget = || std::fs::remove_dir_all(dir.path().join("cache")).unwrap();

    forget();
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    until(Duration::from_secs(60), || compiled(dir.path()) == 1).expect("it is made though nobody asks for it");
    stopped(platform);

    forget();
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    let first = platform.get("shop.localhost", "/").unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(count(&platform), 3);
    stopped(platform);
}

#[test]
fn one_file_of_an_older_copy_is_refused_by_name_and_the_newer_one_serves_again() {
    let [dir, app, later] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    shop(app.path());
    write_app(later.path(), "later", "hello", "").unwrap();
    let files = ["store.redb", "data.redb"].map(|name| dir.path().join(name));
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    platform.ok(&["deploy", app.path().to_str().unwrap()]).unwrap();
    assert_eq!(count(&platform), 1);
    stopped(platform);
    let older = files.each_ref().map(|file| std::fs::read(file).unwrap());
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    platform.ok(&["deploy", later.path().to_str().unwrap()]).unwrap();
    assert_eq!(count(&platform), 2);
    stopped(platform);

    for (file, older) in files.iter().zip(older) {
        let newest = std::fs::read(file).unwrap();
        std::fs::write(file, &older).unwrap();
        let refused = match Platform::start(dir.path(), FLAGS) {
            Ok(_) => panic!("{} is an older copy, and it serves", file.display()),
            Err(cause) => cause.to_string(),
        };
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(refused.contains(name) && refused.contains("older copy"), "{refused}");
        assert!(std::fs::read(file).unwrap() == older, "{name}: it was changed");
        std::fs::write(file, newest).unwrap();
    }
    let platform = Platform::start(dir.path(), FLAGS).unwrap();
    body(&platform, "later");
    assert_eq!(count(&platform), 3);
}
