//! Links of the platform's contracts that another component of the app answers: an adapter stands between the two, as
//! before every provider.

use std::sync::Arc;

use model::{AppName, ComponentName, Link};
use providers::blobstore::ComponentBlobs;
use providers::keyvalue::ComponentStore;
use providers::messaging::{ComponentSender, MessagingLink};
use providers::meter::LinkMeter;
use providers::secrets::{ComponentSecrets, LinkedSecret};
use providers::share::Sharing;
use providers::sql::{ComponentSql, PostgresLink};
use runtime::Callee;

use super::Given;
use super::siblings::{Sibling, Siblings};

impl Given {
    /// Adds what `link` gives of the component called `name`. An interface that is none of the platform's is forwarded as
    /// it is: among the peers.
    pub(super) fn component(
        &mut self,
        app: &AppName,
        link: &Link,
        name: &ComponentName,
        meter: Arc<LinkMeter>,
        siblings: &Arc<Siblings>,
        sharing: Sharing,
    ) {
        let callee = || -> Arc<dyn Callee> { Sibling::new(siblings, name, None) };
        match link.contract.to_string().as_str() {
            "wasi:keyvalue" => {
                let links = self.keyvalue.take().unwrap_or_default();
                let store = Arc::new(ComponentStore::new(callee()));
                self.keyvalue = Some(links.with(&link.label, store, model::watch::bucket(link), meter));
            }
            "wasi:blobstore" => {
                let links = self.blobstore.take().unwrap_or_default();
                let container = link.config.get("container").map(String::as_str);
                // One for all links to it: whoever moves an object to another name of itself has to see that it is one.
                let fresh = || Arc::new(ComponentBlobs::new(callee()));
                let store = self.objects.entry(name.clone()).or_insert_with(fresh).clone();
                self.blobstore = Some(links.with(&link.label, store, container, meter, sharing));
            }
            model::messaging::CONTRACT => {
                let links = self.messaging.take().unwrap_or_default();
                let sender = MessagingLink::new(Arc::new(ComponentSender::new(callee())), meter);
                self.messaging = Some(links.with(link.label.clone(), sender));
            }
            model::secret::CONTRACT => {
                // The control plane has checked the name; a link that names none gives none.
                let Some((key, secret)) = model::secret::of_link(link) else { return };
                let source = Arc::new(ComponentSecrets::new(name.to_string(), callee()));
                let linked = LinkedSecret::new(app.clone(), secret, source, meter);
                self.secrets = Some(self.secrets.take().unwrap_or_default().with(key, linked));
            }
            model::sql::CONTRACT => {
                let database = Arc::new(ComponentSql::new(&link.label, callee()));
                self.sql = Some(self.sql.take().unwrap_or_default().with(&link.label, database, meter, sharing));
            }
            // The contract has no name for a database: a component asks the one with the label `default`.
            model::sql::POSTGRES if link.label == model::Label::default_label() => {
                self.postgres = Some(PostgresLink::component(callee(), meter));
            }
            _ => {}
        }
    }
}
