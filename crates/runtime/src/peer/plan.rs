//! What of an import can be forwarded: its functions, which of them pass resources, and the resources it defines.
//! Refuses what cannot cross from one store to another: streams, futures, and resources of other interfaces.

use std::collections::HashMap;

use wasmtime::Engine;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem, Type};
use wasmtime::component::{Component, ResourceType};

use crate::error::LinkError;

/// One interface that is forwarded.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) functions: Vec<Function>,
    /// The resources that the interface defines, not those it takes over from another.
    pub(super) resources: Vec<String>,
}

/// One of its functions.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: String,
    /// Declared `async`: the caller goes on while it waits.
    pub(super) concurrent: bool,
    /// Whether a parameter or the result holds a handle.
    pub(super) handles: bool,
}

/// Plans the forwarding of the imports in `forwarded`.
pub(super) fn plan(component: &Component, engine: &Engine, forwarded: &[String]) -> Result<Vec<Interface>, LinkError> {
    let ty = component.component_type();
    // Who defines each resource: the first interface that has it.
    let mut owners: Vec<(ResourceType, String)> = Vec::new();
    let mut interfaces = Vec::new();
    for (name, item) in ty.imports(engine) {
        let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
        let mut resources = Vec::new();
        for (export, item) in instance.exports(engine) {
            if let ComponentItem::Resource(resource) = item.ty
                && !owners.iter().any(|(known, _)| *known == resource)
            {
                owners.push((resource, name.to_owned()));
                resources.push(export.to_owned());
            }
        }
        if forwarded.iter().any(|wanted| wanted == name) {
            let functions = functions(name, &instance, engine, &owners, forwarded)?;
            interfaces.push(Interface { name: name.to_owned(), functions, resources });
        }
    }
    Ok(interfaces)
}

fn functions(
    interface: &str,
    instance: &ComponentInstance,
    engine: &Engine,
    owners: &[(ResourceType, String)],
    forwarded: &[String],
) -> Result<Vec<Function>, LinkError> {
    let mut functions = Vec::new();
    for (name, item) in instance.exports(engine) {
        let ComponentItem::ComponentFunc(ty) = item.ty else { continue };
        let mut found = Found::default();
        for ty in types(&ty) {
            found.look(&ty);
        }
        let refuse = |detail: String| LinkError::NotForwarded { interface: interface.to_owned(), detail };
        if let Some(what) = found.refused {
            return Err(refuse(format!("`{name}` passes {what}")));
        }
        for resource in &found.resources {
            match owners.iter().find(|(known, _)| known == resource) {
                Some((_, owner)) if forwarded.contains(owner) => {}
                Some((_, owner)) => return Err(refuse(format!("`{name}` passes a resource of {owner}"))),
                None => return Err(refuse(format!("`{name}` passes a resource that no interface defines"))),
            }
        }
        functions.push(Function {
            name: name.to_owned(),
            concurrent: ty.async_(),
            handles: !found.resources.is_empty(),
        });
    }
    Ok(functions)
}

fn types(function: &ComponentFunc) -> Vec<Type> {
    function.params().map(|(_, ty)| ty).chain(function.results()).collect()
}

/// What is found inside the types of a function.
#[derive(Default)]
struct Found {
    resources: Vec<ResourceType>,
    refused: Option<&'static str>,
}

impl Found {
    fn look(&mut self, ty: &Type) {
        match ty {
            Type::Own(resource) | Type::Borrow(resource) => self.resources.push(*resource),
            Type::Future(_) => self.refused = Some("a future"),
            Type::Stream(_) => self.refused = Some("a stream"),
            Type::ErrorContext => self.refused = Some("an error context"),
            _ => each_part(ty, |part| self.look(&part)),
        }
    }
}

/// Calls `each` with the types a type is made of.
pub(super) fn each_part(ty: &Type, mut each: impl FnMut(Type)) {
    match ty {
        Type::List(list) => each(list.ty()),
        Type::FixedLengthList(list) => each(list.ty()),
        Type::Map(map) => {
            each(map.key());
            each(map.value());
        }
        Type::Record(record) => record.fields().for_each(|field| each(field.ty)),
        Type::Tuple(tuple) => tuple.types().for_each(each),
        Type::Variant(variant) => variant.cases().filter_map(|case| case.ty).for_each(each),
        Type::Option(option) => each(option.ty()),
        Type::Result(result) => result.ok().into_iter().chain(result.err()).for_each(each),
        _ => {}
    }
}

/// The functions and resources of an instance, by name.
pub(super) fn items(instance: &ComponentInstance, engine: &Engine) -> HashMap<String, ComponentItem> {
    instance.exports(engine).map(|(name, item)| (name.to_owned(), item.ty)).collect()
}
