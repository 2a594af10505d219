//! What a test says of a manifest's artifacts and tenant: `facts.toml` beside it, and for what that leaves out a component
//! that answers HTTP and imports what it is linked to.

use std::collections::BTreeMap;

use model::component::ComponentInfo;
use model::lock::{ArtifactFacts, ArtifactProblem, Artifacts};
use model::manifest::{Component, ComponentSource, Manifest};
use model::tenant::TenantSettings;
use model::{ComponentName, Digest, InterfaceId, World};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Facts {
    #[serde(default)]
    components: BTreeMap<ComponentName, Artifact>,
    #[serde(default)]
    pub(crate) tenant: TenantSettings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Artifact {
    problem: Option<String>,
    world: Option<World>,
    imports: Option<Vec<InterfaceId>>,
    exports: Option<Vec<InterfaceId>>,
    size: Option<u64>,
    digest: Option<Digest>,
}

pub(crate) fn read(text: Option<&str>) -> Facts {
    text.map(|text| toml::from_str(text).expect("facts.toml")).unwrap_or_default()
}

impl Facts {
    pub(crate) fn artifacts(&self, manifest: &Manifest) -> Artifacts {
        let of = |(name, component): (&ComponentName, &Component)| {
            let said = self.components.get(name);
            (name.clone(), artifact(said.unwrap_or(&Artifact::default()), component))
        };
        manifest.components.iter().map(of).collect()
    }
}

fn artifact(said: &Artifact, component: &Component) -> Result<ArtifactFacts, ArtifactProblem> {
    if let Some(problem) = &said.problem {
        return Err(match problem.as_str() {
            "missing" => ArtifactProblem::Missing,
            "outside" => ArtifactProblem::Outside,
            "unreadable" => ArtifactProblem::Unreadable("permission denied".to_owned()),
            "too-large" => ArtifactProblem::TooLarge(60_000_000),
            "not-wasm" => ArtifactProblem::NotWasm,
            "core-module" => ArtifactProblem::CoreModule,
            "invalid" => ArtifactProblem::Invalid("unexpected end of section at byte 40".to_owned()),
            "changed" => ArtifactProblem::Digest(Digest::of(b"others")),
            other => panic!("no such problem: {other}"),
        });
    }
    let imports =
        component.links.iter().map(|link| format!("{}/store@0.2.0-draft", link.contract.value).parse().unwrap());
    let pinned = match &component.source.value {
        ComponentSource::Oci(oci) => oci.digest,
        ComponentSource::Path(path) => Digest::of(path.as_bytes()),
    };
    Ok(ArtifactFacts {
        digest: said.digest.unwrap_or(pinned),
        size: said.size.unwrap_or(1000),
        info: ComponentInfo {
            world: said.world.unwrap_or(World::P2),
            imports: said.imports.clone().unwrap_or_else(|| imports.collect()),
            exports: said.exports.clone().unwrap_or_else(|| vec!["wasi:http/incoming-handler@0.2.12".parse().unwrap()]),
            claims: None,
        },
    })
}
