//! What components may import here, and who answers it.

use model::ProviderName;
use model::app::ProviderKind;
use model::offers::{OFFERS, Offer, Offered};
use model::promises::Promises;
use model::rules::callee::ANSWERED;
use serde::{Deserialize, Serialize};

/// A provider an app of the tenant can link to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderView {
    /// Its name.
    pub name: ProviderName,
    /// Its implementation.
    pub kind: ProviderKind,
    /// The contracts it answers, with commas between them.
    pub contract: String,
    /// `built-in`, `operator` or `app <name>`.
    pub from: String,
    /// Who links to it, as `app/component contract label`.
    pub links: Vec<String>,
}

/// One version of a contract that components may import here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ContractView {
    /// `namespace:package`.
    pub contract: String,
    /// The version; of a `track`, the one that is built in. `none`: the package has no version.
    pub version: String,
    /// Every release of this minor version is accepted; else this version only.
    pub track: bool,
    /// Its interfaces.
    pub interfaces: Vec<String>,
    /// A component that imports it needs a link to a provider.
    pub by_link: bool,
    /// The provider types that answer it over a link; `component` is another component of the app.
    pub providers: Vec<ProviderType>,
}

/// A provider type and what it promises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ProviderType {
    /// The type.
    #[serde(rename = "type")]
    pub kind: ProviderKind,
    /// The name under which it is there without being declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in_as: Option<String>,
    /// What an acknowledged write, or message, survives.
    pub durability: String,
    /// What happens at once or not at all, and what order there is.
    pub atomicity: String,
    /// Who can have the same data.
    pub reach: String,
}

/// What this version of the platform offers to components.
pub fn contracts() -> Vec<ContractView> {
    let one = |offer: &Offer| ContractView {
        contract: offer.contract.to_owned(),
        version: offer.version.to_string(),
        track: matches!(offer.version, Offered::Track(..)),
        interfaces: offer.interfaces.iter().map(|&interface| interface.to_owned()).collect(),
        by_link: offer.by_link,
        providers: match offer.by_link {
            true => ProviderKind::ALL
                .into_iter()
                .filter(|kind| match kind {
                    ProviderKind::Component => ANSWERED.contains(&offer.contract),
                    kind => kind.contracts().contains(&offer.contract),
                })
                .map(provider_type)
                .collect(),
            false => Vec::new(),
        },
    };
    OFFERS.iter().map(one).collect()
}

fn provider_type(kind: ProviderKind) -> ProviderType {
    let Promises { durability, atomicity, reach } = kind.promises();
    ProviderType {
        kind,
        built_in_as: kind.built_in_as().map(str::to_owned),
        durability: durability.to_owned(),
        atomicity: atomicity.to_owned(),
        reach: reach.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_among_those_that_answer_a_contract_where_it_can() {
        let answers = |contract: &str, kind: ProviderKind| {
            let all = contracts();
            let found: Vec<_> = all.iter().filter(|offered| offered.by_link && offered.contract == contract).collect();
            assert!(!found.is_empty(), "{contract}");
            found.iter().all(|offered| offered.providers.iter().any(|provider| provider.kind == kind))
        };
        for contract in ANSWERED {
            assert!(answers(contract, ProviderKind::Component), "{contract}");
        }
        assert!(!answers(model::sql::POSTGRES, ProviderKind::SqlSqlite));
        assert!(answers(model::sql::POSTGRES, ProviderKind::SqlPostgres));
    }
}
