//! Brings a revision up on this host: its providers are opened and its components built, loaded and tried where that is asked
//! for, and then it is there with all of its routes, or not at all.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};

use api::agent::StartRequest;
use api::{Code, Problem};
use model::trace::SpanOrigin;
use model::{AppName, Digest, LockedApp, Revision};
use providers::http_out::HttpOut;
use runtime::{Outbound, Sockets};

use super::drain::Drain;
use super::{Apps, Running, lock, route};
use crate::entry::{Entry, Spec};
use crate::error::StartError;
use crate::links;
use crate::links::siblings::{self, Siblings};
use crate::logs::Origin;
use crate::sockets::{self, ComponentSockets};
use crate::taking::Taking;

impl Apps {
    /// Makes a revision answer. The same again changes nothing.
    pub(crate) async fn start(&self, app: &AppName, revision: Revision, request: StartRequest) -> Result<(), Problem> {
        let started = self.bring(app, revision, request).await;
        if started.is_err() {
            self.forget_if_gone(app);
        }
        started
    }

    async fn bring(&self, app: &AppName, revision: Revision, request: StartRequest) -> Result<(), Problem> {
        if request.app.name != *app {
            let detail = format!("the path names app `{app}`, the body `{}`", request.app.name);
            return Err(Problem::new(Code::RequestInvalid, detail));
        }
        let encoded = serde_json::to_vec(&request.app);
        let digest = Digest::of(&encoded.map_err(|cause| Problem::new(Code::Internal, cause.to_string()))?);
        let running = match self.running(app, revision) {
            Some(running) if running.request != digest => {
                let detail = format!("revision {revision} of `{app}` is here already, and is another one");
                return Err(Problem::new(Code::Conflict, detail));
            }
            Some(running) if !running.draining.load(Relaxed) => running,
            _ => Arc::new(self.build(&request.app, revision, digest)?),
        };
        if request.load {
            for provider in running._providers.values() {
                provider.check(&request.app.links, app).await?;
            }
            links::secrets::are_there(&request.app, &running._providers).await?;
            for entry in &running.entries {
                entry.probe(&self.code).await?;
                self.trim();
            }
            siblings::agree(&request.app, &running.entries)?;
        }
        let mut revisions = lock(&self.revisions);
        let known = revisions.get(&(app.clone(), revision)).filter(|known| !known.draining.load(Relaxed));
        if known.is_none() {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            let held = self.holds.comes(app, revision);
            for entry in &running.entries {
                entry.set_held(held);
                routes.insert(route(app, revision, entry), entry.clone());
            }
            revisions.insert((app.clone(), revision), running);
        }
        Ok(())
    }

    fn build(&self, app: &LockedApp, revision: Revision, request: Digest) -> Result<Running, StartError> {
        let siblings = Siblings::new(self.me.clone());
        let opened = self.providers.open(app)?;
        let line = self.holds.line(&app.name);
        let mut entries = Vec::with_capacity(app.components.len());
        for (name, component) in &app.components {
            let origin = Origin { app: app.name.clone(), revision, component: name.clone() };
            let sockets = ComponentSockets::new(&app.name, name, &component.allow_hosts, &self.dialer);
            let (_, web) = sockets::split(&component.allow_hosts);
            let outbound: Option<Arc<dyn Outbound>> = if web.is_empty() {
                None
            } else {
                let out = HttpOut::new(app.name.clone(), name.clone(), &web, self.tls.clone(), self.dialer.clone());
                Some(Arc::new(out.map_err(|cause| StartError::Http { component: name.clone(), cause })?))
            };
            entries.push(Arc::new(Entry::new(Spec {
                component: name.clone(),
                digest: component.digest,
                world: component.world,
                imports: self.code.share_imports(&component.imports),
                forwarded: self.code.share_imports(&siblings::forwarded(app, name)),
                limits: component.limits,
                reuse: component.reuse,
                bindings: links::bindings(
                    app,
                    name,
                    component.answers(),
                    &opened,
                    &self.totals,
                    &siblings,
                    &self.providers,
                ),
                outbound,
                sockets: sockets.map(|sockets| Arc::new(sockets) as Arc<dyn Sockets>),
                origin: Arc::new(SpanOrigin { app: app.name.clone(), revision, component: name.clone() }),
                log: self.logs.component(origin, component.limits.log_rate),
                line: line.clone(),
            })));
        }
        let taking = Taking::new(self.providers.taken(app, revision, &opened, &self.totals));
        siblings.are(&entries);
        Ok(Running {
            request,
            entries,
            _providers: opened,
            taking,
            draining: AtomicBool::new(false),
            drain: Drain::default(),
        })
    }
}
