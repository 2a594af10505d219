//! From the link as it is and as it will be to what is copied, and why that may be nothing.

use api::Code;
use api::copy::{CopyEnd, CopyRequest};

use crate::http::{Answer, Refusal};
use crate::place::Place;
use crate::writer::Planned;

/// What is copied for a move.
pub(super) fn copy_request(planned: &Planned) -> Answer<CopyRequest> {
    let link = &planned.link;
    let unsupported = |what: String| Refusal::new(Code::CopyUnsupported, what);
    let Some(place) = &planned.place else {
        let what = format!(
            "data of `{}` cannot be copied, only keys of wasi:keyvalue and objects of wasi:blobstore",
            link.contract
        );
        return Err(unsupported(what).help("set the link without `--copy-data`"));
    };
    let ends = [&planned.from, &planned.to];
    if let Some((name, _)) = ends.into_iter().find(|(_, spec)| spec.kind == model::ProviderKind::Component) {
        let what = format!(
            "`{name}` is a component: which data are behind it, and in what form, only it knows, so they cannot be copied"
        );
        return Err(unsupported(what)
            .help("move the data of the provider that it links to, or set the link without `--copy-data`"));
    }
    if link.provider == planned.to.0 {
        let what = format!("the link goes to `{}` already", planned.to.0);
        return Err(Refusal::new(Code::RequestInvalid, what));
    }
    if let Some(other) = planned.shared.first() {
        return Err(if other.provider == link.provider { stays(other) } else { shared(other) });
    }
    let (bucket, all_but) = match place {
        Place::One(named) => (named.as_str(), None),
        Place::AllBut(labels) => (link.label.as_str(), Some(labels.iter().cloned().collect())),
    };
    let end = |(provider, spec): &(model::ProviderName, model::ProviderSpec)| CopyEnd {
        provider: provider.clone(),
        spec: spec.clone(),
        bucket: bucket.to_owned(),
    };
    let others = planned.others.clone().into_iter().map(|other| end(&other)).collect();
    let (from, to, sources) = (end(&planned.from), end(&planned.to), planned.sources.clone());
    Ok(CopyRequest { from, to, sources, all_but, others })
}

/// Another link goes on with some of what would be copied, or has it already where that would go.
fn shared(other: &model::Link) -> Refusal {
    let what = format!(
        "component `{}` has the same data at `{}` by its link `{}`: what it writes there would be replaced by older values",
        other.component, other.provider, other.label
    );
    let help = "set the link without `--copy-data`, or give it a bucket or container of its own";
    Refusal::new(Code::RequestInvalid, what).help(help)
}

/// Another link would stay with some of what is moved, where it is now.
fn stays(other: &model::Link) -> Refusal {
    let what = format!(
        "component `{}` has some of the same data at `{}` by its link `{}`, but not the same: it would go on there with what \
         is moved",
        other.component, other.provider, other.label
    );
    let help = "set the link without `--copy-data`, or let each of the two name the containers that are its own";
    Refusal::new(Code::RequestInvalid, what).help(help)
}
