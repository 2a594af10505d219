//! `wasmcloud:bus/lattice`: a component says by which of its links its next calls go. The choice is by label, for the
//! contract of each interface that is named, and holds until the call ends or another choice is made.

use std::collections::{BTreeMap, BTreeSet};

use model::{ContractId, Label};
use runtime::wasmtime::StoreContextMut;
use runtime::wasmtime::component::{Linker, Resource, ResourceType};
use runtime::{Capability, Ctx, LogStreamKind};

/// The labels of one component's links, by contract: a binding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkLabels(BTreeMap<ContractId, BTreeSet<Label>>);

impl LinkLabels {
    /// The labels of `links`.
    pub fn of<'a>(links: impl Iterator<Item = &'a model::Link>) -> Self {
        let mut labels: BTreeMap<ContractId, BTreeSet<Label>> = BTreeMap::new();
        for link in links {
            labels.entry(link.contract.clone()).or_default().insert(link.label.clone());
        }
        Self(labels)
    }

    /// Whether there is nothing to choose from.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why `label` is no choice for `contract`, if it is none. Contracts that are not linked have nothing to choose:
    /// outgoing HTTP, for example, goes where `allow-hosts` lets it.
    fn refusal(&self, contract: &str, label: &str) -> Option<String> {
        let labels = self.0.iter().find(|(known, _)| known.to_string() == contract).map(|(_, labels)| labels)?;
        if label == Label::default_label().as_str() || labels.iter().any(|known| known.as_str() == label) {
            return None;
        }
        let known: Vec<&str> = labels.iter().map(Label::as_str).collect();
        let label = label.chars().take(60).flat_map(char::escape_debug).collect::<String>();
        Some(format!("no link of {contract} has the label `{label}`; linked: {}", known.join(", ")))
    }
}

/// An interface that a guest names.
struct Target {
    contract: String,
}

/// The longest name of a namespace, package or interface that a guest may give, bytes.
const MAX_PART: usize = 128;

/// The capability `wasmcloud:bus`, in the two versions whose `set-link-name` answers differently. 2.0.0 is served by 2.0.1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bus;

/// `set-link-name` answers nothing.
const V1: &str = "wasmcloud:bus/lattice@1.0.0";
/// `set-link-name` says why not.
const V2: &str = "wasmcloud:bus/lattice@2.0.1";

impl Capability for Bus {
    fn interfaces(&self) -> &'static [&'static str] {
        &[V1, V2]
    }

    fn link(&self, linker: &mut Linker<Ctx>) -> wasmtime::Result<()> {
        for name in [V1, V2] {
            let mut lattice = linker.instance(name)?;
            lattice.resource("call-target-interface", ResourceType::host::<Target>(), |mut ctx, rep| {
                ctx.data_mut().table().delete(Resource::<Target>::new_own(rep))?;
                Ok(())
            })?;
            lattice.func_wrap(
                "[constructor]call-target-interface",
                |mut ctx: StoreContextMut<'_, Ctx>, (namespace, package, interface): (String, String, String)| {
                    let mut contract = format!("{namespace}:{package}");
                    if [&namespace, &package, &interface].iter().any(|part| part.len() > MAX_PART) {
                        contract.clear();
                    }
                    Ok((ctx.data_mut().table().push(Target { contract })?,))
                },
            )?;
        }
        linker.instance(V1)?.func_wrap("set-link-name", |mut ctx: StoreContextMut<'_, Ctx>, asked: Asked| {
            // There is no way to say why not: the log says it, and what is opened by this label is not there.
            drop(choose(ctx.data_mut(), asked)?);
            Ok(())
        })?;
        linker.instance(V2)?.func_wrap("set-link-name", |mut ctx: StoreContextMut<'_, Ctx>, asked: Asked| {
            Ok((choose(ctx.data_mut(), asked)?,))
        })?;
        Ok(())
    }
}

/// The label, and the interfaces it is for.
type Asked = (String, Vec<Resource<Target>>);

/// Makes the choice for all interfaces or for none. The handles are the callee's now.
fn choose(ctx: &mut Ctx, (label, interfaces): Asked) -> wasmtime::Result<Result<(), String>> {
    let mut contracts = BTreeSet::new();
    for interface in interfaces {
        contracts.insert(ctx.table().delete(interface)?.contract);
    }
    let labels = ctx.binding::<LinkLabels>().cloned().unwrap_or_default();
    let refusal = contracts.iter().find_map(|contract| labels.refusal(contract, &label));
    if let Some(why) = refusal {
        ctx.log(LogStreamKind::Warn, "wasmcloud:bus", why.as_bytes());
        return Ok(Err(why));
    }
    for contract in contracts.iter().filter(|contract| labels.0.keys().any(|known| known.to_string() == **contract)) {
        ctx.choose_link(contract, &label);
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_among_the_labels_of_its_contract() {
        let link = |contract: &str, label: &str| model::Link {
            component: "c".parse().unwrap(),
            contract: contract.parse().unwrap(),
            label: label.parse().unwrap(),
            provider: "p".parse().unwrap(),
            config: BTreeMap::new(),
        };
        let links = [link("wasi:keyvalue", "cache"), link("wasi:keyvalue", "carts"), link("wasi:blobstore", "photos")];
        let labels = LinkLabels::of(links.iter());
        for (contract, label) in [
            ("wasi:keyvalue", "cache"),
            ("wasi:keyvalue", "default"),
            ("wasi:blobstore", "photos"),
            ("wasi:http", "any"),
        ] {
            assert_eq!(labels.refusal(contract, label), None, "{contract} {label}");
        }
        let why = labels.refusal("wasi:keyvalue", "photos\n").unwrap();
        assert_eq!(why, "no link of wasi:keyvalue has the label `photos\\n`; linked: cache, carts");
        assert!(LinkLabels::default().is_empty() && LinkLabels::default().refusal("wasi:keyvalue", "x").is_none());
    }
}
