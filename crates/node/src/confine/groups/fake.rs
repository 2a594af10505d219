//! What is written into control groups when, on a unified tree (cgroup v2) of plain files. That the kernel does what is written
//! there is seen by the whole-system tests, in the hierarchy of the machine they run on.

use std::fs;

use super::state::{EXTERNAL_MEMORY, EXTERNAL_PIDS};
use super::*;

struct Fake {
    dir: tempfile::TempDir,
    groups: Groups,
}

impl Fake {
    fn new(by_themselves: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hierarchy = Hierarchy::Unified(dir.path().to_owned());
        let groups = Groups::within(hierarchy, dir.path(), by_themselves).unwrap();
        Self { dir, groups }
    }

    /// A tenant's group.
    fn tenant(&self, name: &str) {
        assert_eq!(self.groups.dirs(Who::Tenant(&name.parse().unwrap())).unwrap().len(), 1);
    }

    fn path(&self, who: &str) -> PathBuf {
        let prefix = format!("sidereal-{}", Digest::of(self.dir.path().as_os_str().as_encoded_bytes()).short());
        self.dir.path().join(format!("{prefix}.{who}"))
    }

    fn read(&self, who: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.path(who).join(file)).ok()
    }

    /// Takes the files out of a group and those below it: the kernel's are in nobody's way.
    fn empty(&self, who: &str) {
        let mut folders = vec![self.path(who)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                match entry.is_dir() {
                    true => folders.push(entry),
                    false => fs::remove_file(entry).unwrap(),
                }
            }
        }
    }

    /// Its weight.
    fn stands(&self, who: &str) -> Option<String> {
        self.read(who, "cpu.weight")
    }

    fn say(&self, who: &str, shard: u32, standing: impl Into<Option<Standing>>) {
        self.groups.stand(who, shard, standing.into()).unwrap();
    }

    async fn weigh(&self, who: &str, weight: Option<u32>) {
        self.groups.limit(who, &Quotas { cpu_weight: weight, ..Quotas::default() }).await.unwrap();
    }
}

const USUAL: Option<&str> = Some("100");
const ASIDE: Option<&str> = Some("33");

#[test]
fn a_group_is_set_aside_while_a_host_in_it_computes_and_none_is_owed_a_turn() {
    let fake = Fake::new(false);
    assert_eq!(fake.read("compiler", "cpu.weight").as_deref(), Some("33"));
    fake.tenant("a");
    fake.tenant("b");
    assert_eq!(fake.stands("tenant.a").as_deref(), USUAL);
    fake.say("tenant.a", 0, Standing::Last);
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE);
    assert_eq!(fake.stands("tenant.b").as_deref(), USUAL, "nobody else's");
    // Another host of the tenant serves, and then computes as well and gets nothing.
    fake.say("tenant.a", 1, Standing::Usual);
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE);
    fake.say("tenant.a", 1, Standing::Owed);
    assert_eq!(fake.stands("tenant.a").as_deref(), USUAL);
    fake.say("tenant.a", 1, Standing::Last);
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE);
    // Those that are gone want nothing.
    fake.say("tenant.a", 0, None);
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE);
    fake.say("tenant.a", 1, None);
    assert_eq!(fake.stands("tenant.a").as_deref(), USUAL);
    // One that nobody made a group for.
    fake.say("tenant.c", 0, Standing::Last);
    fake.tenant("c");
}

#[tokio::test]
async fn a_weight_of_the_operator_s_is_what_a_group_has_whatever_it_computes() {
    let fake = Fake::new(false);
    fake.tenant("a");
    fake.say("tenant.a", 0, Standing::Last);
    fake.weigh("tenant.a", Some(50)).await;
    assert_eq!(fake.stands("tenant.a").as_deref(), Some("50"));
    fake.say("tenant.a", 0, Standing::Owed);
    fake.say("tenant.a", 0, Standing::Last);
    assert_eq!(fake.stands("tenant.a").as_deref(), Some("50"));
    fake.weigh("tenant.a", None).await;
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE, "it still computes");
}

#[tokio::test]
async fn hosts_that_give_way_by_themselves_share_the_processor_from_the_first_quota_on() {
    let fake = Fake::new(true);
    fake.tenant("a");
    fake.say("tenant.a", 0, Standing::Last);
    assert_eq!(fake.stands("tenant.a"), None);
    fake.tenant("b");
    fake.weigh("tenant.b", Some(200)).await;
    assert_eq!(fake.stands("tenant.b").as_deref(), Some("200"));
    assert_eq!(fake.stands("tenant.a").as_deref(), ASIDE, "in a group of its own it would give way to nobody else");
    assert_eq!(fake.read("compiler", "cpu.weight").as_deref(), Some("33"));
}

#[tokio::test]
async fn programs_are_in_the_group_of_their_tenant_which_goes_with_the_last_of_them() {
    let fake = Fake::new(true);
    let (a, ab) = ("a".parse().unwrap(), "ab".parse().unwrap());
    let quotas = |mebibytes: u64| {
        let memory = Some(model::unit::ByteSize::mib(mebibytes));
        Quotas { memory, cpu_millis: Some(500), ..Quotas::default() }
    };
    // A program may be there before any host.
    let program = |tenant, process| fake.groups.dirs(Who::External(tenant, process)).unwrap();
    assert_eq!(program(&a, "0a"), [fake.path("tenant.a").join("external.0a")]);
    program(&ab, "0b");
    assert_eq!(fake.read("tenant.a", "cgroup.subtree_control").as_deref(), Some("+memory +pids"));
    assert_eq!(fake.read("tenant.a/external.0a", "memory.max"), Some(EXTERNAL_MEMORY.to_string()));
    assert_eq!(fake.read("tenant.a/external.0a", "pids.max"), Some(EXTERNAL_PIDS.to_string()));
    assert_eq!(fake.groups.dirs(Who::Tenant(&a)).unwrap(), [fake.path("tenant.a").join("own")]);
    // What the tenant may use is for both together, also while they run, and nobody else's.
    fake.groups.limit("tenant.a", &quotas(128)).await.unwrap();
    assert_eq!(fake.read("tenant.a", "memory.max"), Some((128u64 << 20).to_string()));
    assert_eq!(fake.read("tenant.a", "cpu.max").as_deref(), Some("50000 100000"));
    assert_eq!(fake.read("tenant.a/external.0a", "memory.max"), Some(EXTERNAL_MEMORY.to_string()));
    assert_eq!(fake.read("tenant.a/external.0a", "cpu.max"), None, "it is in the part of its tenant");
    assert_eq!(fake.read("tenant.ab", "memory.max").as_deref(), Some("max"));
    // The last host goes, and the program does not.
    fake.groups.release("tenant.a").await;
    assert!(fake.path("tenant.a/external.0a").exists());
    // A host comes, and the program goes.
    fake.tenant("a");
    fake.empty("tenant.a");
    fake.groups.release("external.a.0a").await;
    assert!(!fake.path("tenant.a/external.0a").exists() && fake.path("tenant.a/own").exists());
    // Of the other tenant nobody but the program was there.
    fake.empty("tenant.ab");
    fake.groups.release("external.ab.0b").await;
    assert!(!fake.path("tenant.ab").exists());
    fake.groups.release("tenant.a").await;
    assert!(!fake.path("tenant.a").exists());
}

#[tokio::test]
async fn groups_that_are_all_closed_go_with_those_below_them() {
    let fake = Fake::new(true);
    let a = "a".parse().unwrap();
    fake.groups.dirs(Who::External(&a, "0a")).unwrap();
    fake.tenant("a");
    ["tenant.a", "compiler"].into_iter().for_each(|who| fake.empty(who));
    fake.groups.close().await;
    assert!(!fake.path("tenant.a").exists() && !fake.path("compiler").exists());
}
