//! A tenant's settings: who may change which of them, and what they must not be.

use std::collections::BTreeSet;

use api::client::Require;
use api::problem::Code;
use axum::http::StatusCode;
use model::tenant::TenantSettings;
use model::{NodeName, TenantName};
use store::Expect;
use store::keys;

use super::{Writer, decode, encode};
use crate::http::{Answer, Refusal};
use crate::tokens::Caller;
use crate::trust;

impl Writer {
    /// The nodes that hold no tenant to a quota of memory or processor time.
    fn without_groups(&self) -> Vec<String> {
        const LAYER: &str = "cgroup";
        let state = self.state.lock();
        let without = state.nodes.iter().filter(|(_, record)| !record.layers.iter().any(|layer| layer == LAYER));
        let said = |(name, record): (&NodeName, &keys::NodeRecord)| {
            let why = record.waived.get(LAYER).map_or("it does not say why", String::as_str);
            format!("node {name} has no control groups ({why}): quotas of memory and processor time hold nobody there")
        };
        without.map(said).collect()
    }

    /// Writes a tenant's settings; answers with their etag and the fields that differ from before. Who is not the operator may say whom the tenant trusts, and
    /// nothing that gives it more of anything.
    pub(crate) async fn put_tenant(
        &self,
        name: &TenantName,
        settings: &TenantSettings,
        require: Require,
        by: &Caller,
    ) -> Answer<(u64, Vec<String>)> {
        let operator = *by == Caller::Operator;
        let mut problems = trust::settings_problems(settings);
        if settings.quotas.need_a_group() {
            problems.extend(self.without_groups());
        }
        if !problems.is_empty() {
            let mut refusal =
                Refusal::new(Code::RequestInvalid, format!("the settings of tenant `{name}` cannot be used"));
            refusal.problem.findings = problems;
            return Err(refusal);
        }
        let key = keys::tenant(name);
        let turn = self.turn(Some(by), name).await?;
        let expect = match require {
            Require::Any => {
                return Err(Refusal::new(
                    Code::RequestInvalid,
                    format!("the request replaces all settings of tenant `{name}` without saying which ones"),
                )
                .status(StatusCode::PRECONDITION_REQUIRED)
                .help("send If-Match: <etag>, or If-None-Match: * for a new tenant"));
            }
            Require::Absent => Expect::Absent,
            Require::At(etag) => Expect::Revision(etag),
            Require::Exists => Expect::Revision(self.tenant(name).await?.etag),
        };
        if !operator {
            let now = self.tenant(name).await?.settings;
            let widened = differing(&bare(&now), &bare(settings));
            if !widened.is_empty() {
                let text = format!("only the operator may change {}", widened.join(", "));
                return Err(Refusal::new(Code::Forbidden, text)
                    .help("an owner may change `trust_anchors` and `revoked`; ask your operator for the rest"));
            }
        }
        if self.store.get(&keys::gone(name)).await?.is_some() {
            // Not `conflict`: that means "read again and retry", and this stays so for ever.
            return Err(Refusal::new(
                Code::RequestInvalid,
                format!("there was a tenant `{name}`; its name is not used again"),
            )
            .status(StatusCode::CONFLICT)
            .help("choose another name"));
        }
        self.kinds_kept(name, settings).await?;
        let before = self.store.get(&key).await?.map(|entry| decode::<TenantSettings>(&entry)).transpose()?;
        let changed = differing(&before.unwrap_or_default(), settings);
        let etag = self.store.put(&key, encode(settings)?, expect, None).await?;
        drop(turn);
        // Nobody else changes what it is offered.
        if operator {
            self.follow(name).await?;
        }
        Ok((etag, changed))
    }
}

/// What only the operator decides.
fn bare(settings: &TenantSettings) -> TenantSettings {
    TenantSettings { trust_anchors: Vec::new(), revoked: Vec::new(), ..settings.clone() }
}

/// The fields that differ.
fn differing(now: &TenantSettings, new: &TenantSettings) -> Vec<String> {
    let fields = |settings: &TenantSettings| match serde_json::to_value(settings) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (now, new) = (fields(now), fields(new));
    // Of both: a field that is left out of one of them differs too.
    let fields: BTreeSet<&String> = now.keys().chain(new.keys()).collect();
    fields.into_iter().filter(|field| now.get(*field) != new.get(*field)).map(|field| format!("`{field}`")).collect()
}
