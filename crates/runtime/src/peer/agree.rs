//! Whether an export has what an import asks for: every function, with the same types. Asked when a revision starts, so
//! that no call finds out.

use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};
use wasmtime::component::{Component, ResourceType};

use super::plan::{each_part, items};
use crate::error::LinkError;

/// The resources of the import, each with the one of the export that has its name.
type Pairs = Vec<(ResourceType, ResourceType)>;

/// Checks pairs of (import of `caller`, export of `callee`), all of one callee: an interface may use the resources of
/// another.
pub(crate) fn agree(caller: &Component, callee: &Component, pairs: &[(&str, &str)]) -> Result<(), LinkError> {
    let (ours, theirs) = (caller.component_type(), callee.component_type());
    let mut resources = Pairs::new();
    let mut functions = Vec::new();
    for (import, export) in pairs {
        let differs = |detail: String| LinkError::Disagree { interface: (*import).to_owned(), detail };
        let instance = |item: Option<ComponentItem>| match item {
            Some(ComponentItem::ComponentInstance(instance)) => Some(instance),
            _ => None,
        };
        let wanted = instance(ours.get_import(caller.engine(), import).map(|found| found.ty));
        let wanted = wanted.ok_or_else(|| differs("it is not imported".to_owned()))?;
        let had = instance(theirs.get_export(callee.engine(), export).map(|found| found.ty));
        let had = had.ok_or_else(|| differs(format!("{export} is not exported")))?;
        let had = items(&had, callee.engine());
        for (name, item) in wanted.exports(caller.engine()) {
            match (item.ty, had.get(name)) {
                (ComponentItem::Resource(a), Some(ComponentItem::Resource(b))) => resources.push((a, *b)),
                (ComponentItem::ComponentFunc(a), Some(ComponentItem::ComponentFunc(b))) => {
                    functions.push(((*import).to_owned(), name.to_owned(), a, b.clone()));
                }
                (ComponentItem::Resource(_), _) => return Err(differs(format!("there is no resource `{name}`"))),
                (ComponentItem::ComponentFunc(_), _) => return Err(differs(format!("there is no function `{name}`"))),
                _ => {}
            }
        }
    }
    for (interface, name, a, b) in functions {
        if !function(&a, &b, &resources) {
            let detail = format!("`{name}` has other parameters or another result");
            return Err(LinkError::Disagree { interface, detail });
        }
    }
    Ok(())
}

fn function(a: &ComponentFunc, b: &ComponentFunc, resources: &Pairs) -> bool {
    let params = a.params().len() == b.params().len()
        && a.params().zip(b.params()).all(|((_, a), (_, b))| same(&a, &b, resources));
    let results = a.results().len() == b.results().len();
    params && results && a.results().zip(b.results()).all(|(a, b)| same(&a, &b, resources))
}

/// Whether two types of different components are the same. Names of fields and cases count, since values pass by name.
fn same(a: &Type, b: &Type, resources: &Pairs) -> bool {
    let pair = |a: &ResourceType, b: &ResourceType| resources.iter().any(|(x, y)| x == a && y == b);
    let shape = match (a, b) {
        (Type::Own(a), Type::Own(b)) | (Type::Borrow(a), Type::Borrow(b)) => return pair(a, b),
        (Type::Record(a), Type::Record(b)) => a.fields().map(|f| f.name).eq(b.fields().map(|f| f.name)),
        (Type::Variant(a), Type::Variant(b)) => {
            a.cases().map(|c| (c.name, c.ty.is_some())).eq(b.cases().map(|c| (c.name, c.ty.is_some())))
        }
        (Type::Enum(a), Type::Enum(b)) => a.names().eq(b.names()),
        (Type::Flags(a), Type::Flags(b)) => a.names().eq(b.names()),
        (Type::Result(a), Type::Result(b)) => {
            a.ok().is_some() == b.ok().is_some() && a.err().is_some() == b.err().is_some()
        }
        (Type::FixedLengthList(a), Type::FixedLengthList(b)) => a.len() == b.len(),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    let parts = |ty: &Type| {
        let mut parts = Vec::new();
        each_part(ty, |part| parts.push(part));
        parts
    };
    let (a, b) = (parts(a), parts(b));
    shape && a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same(a, b, resources))
}
