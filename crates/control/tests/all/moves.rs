//! Moves of data with a node that does every step: which revision has the calls at the end, whatever becomes of the new one.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::client::{ClientError, Require};
use api::control::MoveRequest;
use api::copy::{CopyPhase, CopyView, Extra, Keys, MoveRecord};
use api::node::{CopyOutcome, CopyStep};
use api::{Code, Problem};
use model::app::{LockedApp, Revision};
use model::observed::{AppObserved, Phase, Reason};
use store::keys::{self, NodeRecord};
use store::{Expect, Store as _};

use crate::between::Through;
use crate::failures::Flaky;
use crate::kept::quota;
use crate::rig::{Inside, Nodes, PATIENCE, Rig, Steps, locked, name, refused};

/// Where a node says that an app stands.
async fn report(rig: &Rig, revision: u64, phase: Phase, serving: Option<u64>) {
    let reason = (phase == Phase::Failed).then(|| Reason { code: "x".into(), message: "it breaks".into(), help: None });
    let report = AppObserved { revision: Revision(revision), phase, serving: serving.map(Revision), reason };
    let key = keys::observed(&name("local"), &rig.tenant, &name("counter"));
    rig.store.put(&key, serde_json::to_vec(&report).unwrap().into(), Expect::Any, None).await.unwrap();
}

/// An app whose revision 1 is deployed, and the steps that the node did.
async fn deployed() -> (Rig, LockedApp, Arc<Mutex<Vec<CopyStep>>>) {
    deployed_with(Nodes::default()).await
}

async fn deployed_with(nodes: Nodes) -> (Rig, LockedApp, Arc<Mutex<Vec<CopyStep>>>) {
    let mut rig = Rig::without_node().await;
    let steps = Arc::<Mutex<Vec<CopyStep>>>::default();
    let nodes = Nodes { copied: Some(steps.clone()), ..nodes };
    rig.restart_with(nodes, Duration::from_secs(3600)).await;
    let record = NodeRecord { ingress: vec![], pid: 1, since_ms: 1, ..NodeRecord::default() };
    let record = serde_json::to_vec(&record).unwrap().into();
    rig.store.put(&keys::node(&name("local")), record, Expect::Any, None).await.unwrap();
    let app = locked("counter", &rig.artifact(1).await);
    rig.put(&app).await.unwrap();
    (rig, app, steps)
}

fn request(extra: Extra) -> MoveRequest {
    let (contract, provider) = (name("wasi:keyvalue"), name("memory"));
    MoveRequest { component: None, contract, label: None, provider, extra }
}

async fn begin(rig: &Rig) {
    begin_with(rig, Extra::Refuse).await;
}

async fn begin_with(rig: &Rig, extra: Extra) {
    rig.client.copy(&rig.tenant, &name("counter"), &request(extra)).await.unwrap();
}

/// The move, once it is over.
async fn over(rig: &Rig) -> CopyView {
    let over = async {
        loop {
            let view = rig.client.copied(&rig.tenant, &name("counter")).await.unwrap();
            if matches!(view.phase, CopyPhase::Done | CopyPhase::Failed) {
                return view;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("the move does not end")
}

fn released(steps: &Mutex<Vec<CopyStep>>) -> Vec<Option<Revision>> {
    let to = |step: &CopyStep| if let CopyStep::Release(to) = step { Some(*to) } else { None };
    steps.lock().unwrap().iter().filter_map(to).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_that_lands_while_a_move_switches_stays() {
    let (rig, _, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    // The new link is recorded and does not serve yet, when somebody deploys.
    let mut app = rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app;
    app.version = Some("2".into());
    assert_eq!(rig.put(&app).await.unwrap().revision, Revision(3));
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem), (CopyPhase::Done, None));
    assert_eq!(released(&steps), [Some(Revision(3))]);
    let now = rig.client.app(&rig.tenant, &name("counter")).await.unwrap();
    assert_eq!((now.desired.revision, now.desired.app), (Revision(3), app), "it is not rolled back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_new_provider_does_not_serve_the_old_one_does_again_before_calls_go_on() {
    let (rig, app, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    report(&rig, 2, Phase::Failed, Some(1)).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await;
    assert_eq!(released(&steps), [], "not before it serves");
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    let problem = view.problem.unwrap();
    assert_eq!((view.phase, problem.code), (CopyPhase::Failed, Code::StartFailed));
    assert!(problem.detail.contains("it breaks"), "{problem}");
    assert_eq!(released(&steps), [Some(Revision(3))]);
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app.links, app.links);
}

/// Another control plane over the same store, with the same node.
async fn restarted(rig: &mut Rig, steps: &Arc<Mutex<Vec<CopyStep>>>) {
    let nodes = Nodes { copied: Some(steps.clone()), ..Nodes::default() };
    rig.restart_with(nodes, Duration::from_secs(3600)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_in_the_switch_calls_go_on_with_what_is_recorded_once_it_serves() {
    let (mut rig, _, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    // The new link is recorded, and its revision does not serve yet. The node puts the old one back, and its calls wait.
    restarted(&mut rig, &steps).await;
    assert_eq!(released(&steps), [], "neither by the one that ended nor by the one that began");
    report(&rig, 2, Phase::Serving, Some(2)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem, view.revision), (CopyPhase::Done, None, Some(Revision(2))));
    assert_eq!(released(&steps), [Some(Revision(2))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_in_the_switch_what_was_before_is_recorded_again_where_the_new_provider_does_not_serve() {
    let (mut rig, app, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    restarted(&mut rig, &steps).await;
    report(&rig, 2, Phase::Failed, Some(1)).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await;
    assert_eq!(released(&steps), [], "not before it serves");
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem.unwrap().code), (CopyPhase::Failed, Code::StartFailed));
    assert_eq!(released(&steps), [Some(Revision(3))]);
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app.links, app.links);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_before_the_link_moved_calls_go_on_at_once_and_the_move_begins_anew() {
    let (mut rig, _, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    let (from, to, phase) = (name("embedded"), name("memory"), CopyPhase::Switching);
    let (held_ms, revision, problem) = (None, None, None);
    let view = CopyView { from, to, phase, read: 0, written: 0, bytes: 0, held_ms, revision, problem };
    let (meant, before) = (Some((name("counter"), name("default"))), Some(Revision(1)));
    let record =
        MoveRecord { since: Some(Revision(1)), request: request(Extra::Refuse), meant, looked: None, before, view };
    let key = keys::copy(&rig.tenant, &name("counter"));
    rig.store.put(&key, serde_json::to_vec(&record).unwrap().into(), Expect::Any, None).await.unwrap();
    restarted(&mut rig, &steps).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    report(&rig, 2, Phase::Serving, Some(2)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem, view.revision), (CopyPhase::Done, None, Some(Revision(2))));
    let first = |steps: &[CopyStep]| matches!(steps, [CopyStep::Release(None), CopyStep::Begin(_), ..]);
    assert!(first(&steps.lock().unwrap()), "{:?}", steps.lock().unwrap());
    assert_eq!(released(&steps), [None, Some(Revision(2))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_goes_on_with_the_old_provider_before_the_way_back_is_recorded() {
    let (mut rig, app, steps) = deployed().await;
    let flaky = Through::new(&rig.store, Flaky::new(keys::REVISIONS));
    let nodes = Nodes { copied: Some(steps.clone()), ..Nodes::default() };
    rig.restart_over(flaky.clone(), nodes).await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    flaky.writes.store(u32::MAX, SeqCst);
    report(&rig, 2, Phase::Failed, Some(1)).await;
    let refused = async {
        while u32::MAX - flaky.writes.load(SeqCst) < 8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("it is given up");
    assert_eq!(released(&steps), [], "the app's record says that the new provider answers");
    flaky.writes.store(0, SeqCst);
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await;
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem.unwrap().code), (CopyPhase::Failed, Code::StartFailed));
    assert_eq!(released(&steps), [Some(Revision(3))]);
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app.links, app.links);
    rig.shutdown().await;
}

/// Deletes the app and deploys another one of that name, which serves.
async fn replaced(rig: &Rig, app: &LockedApp, revision: u64) {
    rig.client.delete_app(&rig.tenant, &app.name, Require::Any).await.unwrap();
    assert_eq!(rig.put(app).await.unwrap().revision, Revision(revision));
    report(rig, revision, Phase::Serving, Some(revision)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_move_of_a_deleted_app_ends_and_does_nothing_to_the_next_one_of_its_name() {
    let (rig, app, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    // The link is recorded and does not serve yet.
    replaced(&rig, &app, 3).await;
    let ended = async {
        while released(&steps).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Until then it is said that there is an earlier one.
        loop {
            match rig.client.copy(&rig.tenant, &name("counter"), &request(Extra::Refuse)).await {
                Err(ClientError::Refused(problem)) if problem.code == Code::Busy => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                done => return done.unwrap(),
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the earlier one does not end");
    assert_eq!(released(&steps), [None], "not to a revision of the other app");
    let now = rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired;
    assert_eq!((now.revision, now.app.links), (Revision(3), app.links));
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(4))).await;
    report(&rig, 4, Phase::Serving, Some(4)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem, view.revision), (CopyPhase::Done, None, Some(Revision(4))));
    assert_eq!(released(&steps), [None, Some(Revision(4))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_the_move_of_a_deleted_app_is_not_the_next_ones_of_its_name() {
    let (mut rig, app, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    report(&rig, 2, Phase::Serving, Some(2)).await;
    over(&rig).await;
    let key = keys::copy(&rig.tenant, &name("counter"));
    let record = rig.store.get(&key).await.unwrap().unwrap().value;
    let mut record: MoveRecord = serde_json::from_slice(&record).unwrap();
    replaced(&rig, &app, 3).await;
    for phase in [CopyPhase::Copying, CopyPhase::Switching, CopyPhase::Done] {
        // As a crash in the middle of the deletion leaves it.
        record.view.phase = phase;
        rig.store.put(&key, serde_json::to_vec(&record).unwrap().into(), Expect::Any, None).await.unwrap();
        steps.lock().unwrap().clear();
        restarted(&mut rig, &steps).await;
        let none = refused(rig.client.copied(&rig.tenant, &name("counter")).await);
        assert_eq!(none.code, Code::NotFound, "{phase:?}");
        assert!(rig.store.get(&key).await.unwrap().is_none(), "{phase:?}");
        let held = if phase == CopyPhase::Switching { vec![None] } else { vec![] };
        assert_eq!(released(&steps), held, "{phase:?}");
        assert_eq!(steps.lock().unwrap().len(), held.len(), "{phase:?}");
    }
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.revision, Revision(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_will_be_no_room_to_record_is_not_copied() {
    let (rig, _, steps) = deployed().await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    rig.client.put_tenant(&rig.tenant, &quota(&rig, 0), Require::Exists).await.unwrap();
    let app = name("counter");
    let refusal = refused(rig.client.copy(&rig.tenant, &app, &request(Extra::Refuse)).await);
    assert!(refusal.code == Code::QuotaExceeded && refusal.detail.contains("`record_bytes`"), "{refusal:?}");
    assert_eq!(refused(rig.client.copied(&rig.tenant, &app).await).code, Code::NotFound);
    assert!(steps.lock().unwrap().is_empty());
    // Where there is just as much, it is enough.
    let (_, would) = refusal.detail.split_once("would be ").unwrap();
    let would: u64 = would.split_once(' ').unwrap().0.parse().unwrap();
    rig.client.put_tenant(&rig.tenant, &quota(&rig, would), Require::Exists).await.unwrap();
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    report(&rig, 2, Phase::Serving, Some(2)).await;
    assert_eq!(over(&rig).await.problem, None);
}

/// A node one of whose hosts is gone when it is asked for the first time what it noted. From then on the target has a key
/// that the source has not: it was copied before, and removed since.
fn loses_its_notes() -> Steps {
    let lost = AtomicU32::new(0);
    Arc::new(move |step: &CopyStep| match step {
        CopyStep::Noted(_) if lost.fetch_add(1, SeqCst) == 0 => {
            Some(Err(Problem::new(Code::NotFound, "the tenant has other hosts")))
        }
        CopyStep::Extra(_) if lost.load(SeqCst) > 0 => {
            Some(Ok(CopyOutcome::Keys(Keys { keys: vec!["removed".into()], cursor: None })))
        }
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_begins_again_takes_back_what_the_app_has_removed_since() {
    let (rig, _, steps) = deployed_with(Nodes { steps: Some(loses_its_notes()), ..Nodes::default() }).await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(2))).await;
    report(&rig, 2, Phase::Serving, Some(2)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem), (CopyPhase::Done, None));
    let steps = steps.lock().unwrap();
    let mut again = steps.iter().skip_while(|step| !matches!(step, CopyStep::End));
    let looked = again.by_ref().find(|step| matches!(step, CopyStep::Extra(_) | CopyStep::Page(_)));
    assert!(matches!(looked, Some(CopyStep::Extra(_))), "{steps:?}");
    assert!(matches!(again.next(), Some(CopyStep::Keys(keys)) if *keys == ["removed"]), "{steps:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_keeps_what_the_target_had_does_not_begin_again() {
    let (rig, app, steps) = deployed_with(Nodes { steps: Some(loses_its_notes()), ..Nodes::default() }).await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin_with(&rig, Extra::Keep).await;
    let view = over(&rig).await;
    let problem = view.problem.unwrap();
    assert_eq!((view.phase, problem.code), (CopyPhase::Failed, Code::Busy));
    assert!(
        problem.detail.contains("would come back") && problem.help.unwrap().contains("remove"),
        "{}",
        problem.detail
    );
    assert!(!steps.lock().unwrap().iter().any(|step| matches!(step, CopyStep::Keys(_) | CopyStep::Hold(..))));
    assert_eq!(rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app.links, app.links);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_whose_newest_revision_does_not_answer_is_not_moved() {
    let (rig, mut app, steps) = deployed().await;
    app.version = Some("2".into());
    rig.put(&app).await.unwrap();
    report(&rig, 2, Phase::Failed, Some(1)).await;
    begin(&rig).await;
    let problem = over(&rig).await.problem.unwrap();
    assert!(problem.code == Code::Busy && problem.detail.contains("does not answer"), "{problem}");
    let copied = |step: &CopyStep| matches!(step, CopyStep::Begin(_) | CopyStep::Hold(..));
    assert!(!steps.lock().unwrap().iter().any(copied), "nothing was begun");
    // The link is everybody's to set again.
    let link = api::control::LinkRequest {
        component: None,
        contract: name("wasi:keyvalue"),
        label: None,
        provider: name("memory"),
    };
    rig.client.link(&rig.tenant, &name("counter"), &link, Require::Any).await.unwrap();
}

/// The app with a link of another component beside the one it has.
fn with_second(mut app: LockedApp, provider: &str, bucket: Option<&str>) -> LockedApp {
    let component = app.components.values().next().unwrap().clone();
    app.components.insert(name("index"), component);
    let mut link = app.links[0].clone();
    (link.component, link.provider) = (name("index"), name(provider));
    app.providers.entry(link.provider.clone()).or_insert_with(|| {
        let embedded = || model::app::ProviderSpec::new(model::ProviderKind::KeyvalueEmbedded);
        model::rules::provider::built_in(provider).unwrap_or_else(embedded)
    });
    link.config.extend(bucket.map(|bucket| ("bucket".to_owned(), bucket.to_owned())));
    app.links.push(link);
    app
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_links_of_a_bucket_move_with_its_data_in_one_revision() {
    let (rig, app, _) = deployed().await;
    let third = with_second(app, "embedded", None);
    let mut app = third.clone();
    let mut own = third.links[0].clone();
    own.label = name("own");
    app.links.push(own);
    rig.put(&app).await.unwrap();
    report(&rig, 2, Phase::Serving, Some(2)).await;
    // Which of those that share it is named makes no difference.
    let contract = name("wasi:keyvalue");
    let (component, label, provider) = (Some(name("index")), Some(name("default")), name("memory"));
    let request = MoveRequest { component, contract, label, provider, extra: Extra::Refuse };
    rig.client.copy(&rig.tenant, &name("counter"), &request).await.unwrap();
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await;
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem, view.revision), (CopyPhase::Done, None, Some(Revision(3))));
    let now = rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app;
    let at = |label: &str| -> Vec<String> {
        let of = now.links.iter().filter(|link| link.label.as_str() == label);
        of.map(|link| format!("{} {}", link.component, link.provider)).collect()
    };
    assert_eq!(at("default"), ["counter memory", "index memory"]);
    assert_eq!(at("own").len(), 1);
    assert!(at("own")[0].ends_with(" embedded"), "what reaches another bucket stays: {:?}", now.links);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_moved_into_a_bucket_that_another_link_of_the_app_has() {
    let (rig, app, steps) = deployed().await;
    let begin = async || {
        let (component, contract, extra) = (Some(name("counter")), name("wasi:keyvalue"), Extra::Keep);
        let request = MoveRequest { component, contract, label: None, provider: name("memory"), extra };
        rig.client.copy(&rig.tenant, &name("counter"), &request).await
    };
    rig.put(&with_second(app.clone(), "memory", None)).await.unwrap();
    report(&rig, 2, Phase::Serving, Some(2)).await;
    let problem = refused(begin().await);
    assert_eq!(problem.code, Code::RequestInvalid);
    assert!(problem.detail.contains("`index`") && problem.detail.contains("`memory`"), "{problem}");
    assert!(steps.lock().unwrap().is_empty(), "nothing was begun");
    // Another bucket of that provider is nobody's concern.
    rig.put(&with_second(app, "memory", Some("own"))).await.unwrap();
    report(&rig, 3, Phase::Serving, Some(3)).await;
    begin().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_other_link_of_the_app_comes_to_the_bucket_that_a_move_fills() {
    let page = Arc::new(Inside::default());
    let (rig, app, _) = deployed_with(Nodes { page: Some(page.clone()), ..Nodes::default() }).await;
    let app = with_second(app, "other", None);
    rig.put(&app).await.unwrap();
    report(&rig, 2, Phase::Serving, Some(2)).await;
    let contract = name::<model::ContractId>("wasi:keyvalue");
    let request = MoveRequest {
        component: Some(name("counter")),
        contract: contract.clone(),
        label: Some(name("default")),
        provider: name("memory"),
        extra: Extra::Keep,
    };
    rig.client.copy(&rig.tenant, &name("counter"), &request).await.unwrap();
    let copying = async {
        while page.calls.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copying).await.expect("nothing is copied");
    let link = |provider: &str| api::control::LinkRequest {
        component: Some(name("index")),
        contract: contract.clone(),
        label: None,
        provider: name(provider),
    };
    let problem = refused(rig.client.link(&rig.tenant, &name("counter"), &link("memory"), Require::Any).await);
    assert_eq!(problem.code, Code::Conflict);
    assert!(problem.detail.contains("`index`") && problem.detail.contains("`memory`"), "{problem}");
    let mut third = app.links[0].clone();
    (third.label, third.provider) = (name("third"), name("memory"));
    third.config.insert("bucket".to_owned(), "default".to_owned());
    let mut deploy = app.clone();
    deploy.links.push(third.clone());
    deploy.providers.insert(name("memory"), model::rules::provider::built_in("memory").unwrap());
    assert_eq!(refused(rig.put(&deploy).await).code, Code::Conflict);
    // Another bucket there is nobody's concern.
    third.config.insert("bucket".to_owned(), "own".to_owned());
    deploy.links.pop();
    deploy.links.push(third);
    rig.put(&deploy).await.unwrap();
    page.go_on.store(true, SeqCst);
    report(&rig, 3, Phase::Serving, Some(3)).await;
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(4))).await;
    report(&rig, 4, Phase::Serving, Some(4)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem), (CopyPhase::Done, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_comes_while_a_move_without_one_is_under_way_leaves_it_as_it_was_meant() {
    let page = Arc::new(Inside::default());
    let (rig, app, steps) = deployed_with(Nodes { page: Some(page.clone()), ..Nodes::default() }).await;
    report(&rig, 1, Phase::Serving, Some(1)).await;
    begin(&rig).await;
    let copying = async {
        while page.calls.load(SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, copying).await.expect("nothing is copied");
    // It has a bucket of its own, and stays where it is.
    let mut deploy = app.clone();
    let mut second = app.links[0].clone();
    second.label = name("second");
    deploy.links.push(second);
    assert_eq!(rig.put(&deploy).await.unwrap().revision, Revision(2));
    report(&rig, 2, Phase::Serving, Some(2)).await;
    // The same request again is the move that is under way, though it would be another one by now.
    begin(&rig).await;
    page.go_on.store(true, SeqCst);
    rig.assigned("counter", |a| a.is_some_and(|a| a.revision == Revision(3))).await;
    report(&rig, 3, Phase::Serving, Some(3)).await;
    let view = over(&rig).await;
    assert_eq!((view.phase, view.problem, view.revision), (CopyPhase::Done, None, Some(Revision(3))));
    let begun = steps.lock().unwrap().iter().filter(|step| matches!(step, CopyStep::Begin(_))).count();
    assert_eq!(begun, 1, "it did not begin anew");
    let now = rig.client.app(&rig.tenant, &name("counter")).await.unwrap().desired.app;
    let links: Vec<_> = now.links.iter().map(|link| format!("{} {}", link.label, link.provider)).collect();
    assert_eq!(links, ["default memory".to_owned(), format!("second {}", app.links[0].provider)]);
}
