//! What was vouched for when a revision was made, and whether it may run for its tenant as that is set now: the control plane
//! asks of what is wanted and of what serves, a node of calls that are still under way on a revision that was replaced.

use std::collections::BTreeMap;

use crate::app::{LockedApp, Revision};
use crate::claims::{self, Claims, ClaimsError, ComponentClaims, LEEWAY, TrustPolicy, Verdict};
use crate::digest::Digest;
use crate::name::{ComponentName, ProviderName};
use crate::observed::Reason;
use crate::plan::{Expiry, Wanted};
use crate::tenant::TenantSettings;

/// What a revision stands on: what its signers said, and what the operator offers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vouched {
    components: Vec<(ComponentName, Digest, Verdict)>,
    offered: Vec<ProviderName>,
}

impl Vouched {
    /// Of an app and the claims that were found when it was deployed; components without were unsigned.
    pub fn of(app: &LockedApp, claims: &BTreeMap<ComponentName, Claims>) -> Self {
        // What a signer granted was compared with the imports of the component, which do not change: it need not be kept.
        let signed =
            |claims: &Claims| Verdict::Signed(Claims { component: ComponentClaims::default(), ..claims.clone() });
        let verdict = |name| claims.get(name).map_or(Verdict::Unsigned, signed);
        let offered = app.providers.iter().filter(|(_, spec)| spec.operator);
        Self {
            components: app.components.iter().map(|(name, c)| (name.clone(), c.digest, verdict(name))).collect(),
            offered: offered.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// Whether it may run, and until when. `now` is in seconds since 1970. That its tenant is suspended is not looked at: that
    /// is no matter of one revision.
    pub fn judge(&self, revision: Revision, tenant: &TenantSettings, now: u64) -> Wanted {
        let policy = TrustPolicy::from(tenant);
        let (mut denied, mut expiry) = (None, None::<Expiry>);
        for (name, digest, verdict) in &self.components {
            match claims::recheck(verdict, digest, &policy, now) {
                // Time is the plan's: it suspends at the right second. A clock that went back does not undo a start.
                Ok(()) | Err(ClaimsError::Expired { .. } | ClaimsError::NotYetValid { .. }) => {}
                Err(error) => {
                    denied.get_or_insert_with(|| Reason {
                        code: error.code().to_owned(),
                        message: format!("component `{name}`: {error}"),
                        help: Some(error.help().to_owned()),
                    });
                }
            }
            if let Verdict::Signed(Claims { expires: Some(at), .. }) = verdict {
                let at = at.saturating_add(LEEWAY);
                if expiry.as_ref().is_none_or(|e| at < e.at) {
                    expiry = Some(Expiry { at, component: name.clone() });
                }
            }
        }
        if let Some(name) = self.offered.iter().find(|name| !tenant.providers.contains_key(*name)) {
            denied.get_or_insert_with(|| Reason {
                code: "provider-unavailable".to_owned(),
                message: format!("the operator no longer offers provider `{name}` to this tenant"),
                help: Some("link to another provider: sidereal link set".to_owned()),
            });
        }
        Wanted { revision, denied: denied.map(Box::new), expiry: expiry.map(Box::new) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_vouched_for_is_judged_by_the_settings_of_now() {
        let digest = Digest::of(b"one");
        let app: LockedApp = serde_json::from_value(serde_json::json!({ "name": "a",
            "components": {
                "signed": { "digest": digest, "size": 1, "world": "p2", "imports": [], "exports": [] },
                "other": { "digest": digest, "size": 1, "world": "p2", "imports": [], "exports": [] } },
            "providers": { "bus": { "type": "keyvalue-redis", "operator": true } } }))
        .unwrap();
        let claims =
            serde_json::json!({ "jti": "id", "iat": 0, "iss": "A", "sub": "M", "exp": 1000, "wascap": { "hash": "" } });
        let claims = [("signed".parse().unwrap(), serde_json::from_value(claims).unwrap())].into();
        let vouched = Vouched::of(&app, &claims);
        let bus = app.providers.iter().map(|(name, spec)| (name.clone(), spec.clone())).collect();
        let good = TenantSettings {
            trust_anchors: vec!["A".to_owned()],
            allow_unsigned: true,
            providers: bus,
            ..TenantSettings::default()
        };
        let code = |settings: &TenantSettings, now| {
            let judged = vouched.judge(Revision(7), settings, now);
            assert_eq!((judged.revision, judged.expiry.as_ref().unwrap().at), (Revision(7), 1000 + LEEWAY));
            judged.barred(now).map_or_else(String::new, |reason| reason.code)
        };
        assert_eq!(code(&good, 0), "");
        assert_eq!(code(&good, 1000 + LEEWAY - 1), "");
        assert_eq!(code(&good, 1000 + LEEWAY), "artifact-expired");
        for revoked in ["A", "M", "id", &digest.to_string()] {
            let revoked = TenantSettings { revoked: vec![revoked.to_owned()], ..good.clone() };
            assert_eq!(code(&revoked, 0), "artifact-revoked");
        }
        assert_eq!(code(&TenantSettings { trust_anchors: Vec::new(), ..good.clone() }, 0), "issuer-untrusted");
        assert_eq!(code(&TenantSettings { allow_unsigned: false, ..good.clone() }, 0), "artifact-unsigned");
        assert_eq!(code(&TenantSettings { providers: BTreeMap::new(), ..good.clone() }, 0), "provider-unavailable");
    }
}
