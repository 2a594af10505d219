//! Exports `wasi:blobstore` and imports it: an object store that is a component. It puts a prefix, from its configuration,
//! before the name of every object; streams pass as they are.
mod bindings {
    wit_bindgen::generate!({
        path: ["../wit/p2", "../wit/blobstore", "../wit/config"],
        inline: "
            package sidereal:blob-prefix;
            world provider {
                import wasi:config/store@0.2.0-rc.1;
                import wasi:blobstore/types@0.2.0-draft;
                import wasi:blobstore/container@0.2.0-draft;
                import wasi:blobstore/blobstore@0.2.0-draft;
                export wasi:blobstore/types@0.2.0-draft;
                export wasi:blobstore/container@0.2.0-draft;
                export wasi:blobstore/blobstore@0.2.0-draft;
            }
        ",
        world: "sidereal:blob-prefix/provider",
        generate_all,
    });
}

use bindings::exports::wasi::blobstore::{blobstore as store, container as containers, types as values};
use bindings::wasi::blobstore as theirs;
use bindings::wasi::io::streams::{InputStream, OutputStream};

struct Prefix;

/// A container of its own link, and what stands before each name in it.
struct Container {
    inner: theirs::container::Container,
    prefix: String,
}

struct Names {
    inner: theirs::container::StreamObjectNames,
    prefix: String,
}

struct Outgoing(theirs::types::OutgoingValue);

struct Incoming(theirs::types::IncomingValue);

fn prefix() -> Result<String, String> {
    let prefix = bindings::wasi::config::store::get("prefix");
    prefix.map(Option::unwrap_or_default).map_err(|error| format!("the prefix cannot be read: {error:?}"))
}

impl Container {
    fn name_of(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl values::Guest for Prefix {
    type OutgoingValue = Outgoing;
    type IncomingValue = Incoming;
}

impl values::GuestOutgoingValue for Outgoing {
    fn new_outgoing_value() -> values::OutgoingValue {
        values::OutgoingValue::new(Outgoing(theirs::types::OutgoingValue::new_outgoing_value()))
    }

    fn outgoing_value_write_body(&self) -> Result<OutputStream, ()> {
        self.0.outgoing_value_write_body()
    }

    fn finish(this: values::OutgoingValue) -> Result<(), String> {
        theirs::types::OutgoingValue::finish(this.into_inner::<Outgoing>().0)
    }
}

impl values::GuestIncomingValue for Incoming {
    fn incoming_value_consume_sync(this: values::IncomingValue) -> Result<Vec<u8>, String> {
        theirs::types::IncomingValue::incoming_value_consume_sync(this.into_inner::<Incoming>().0)
    }

    fn incoming_value_consume_async(this: values::IncomingValue) -> Result<InputStream, String> {
        theirs::types::IncomingValue::incoming_value_consume_async(this.into_inner::<Incoming>().0)
    }

    fn size(&self) -> u64 {
        self.0.size()
    }
}

impl containers::Guest for Prefix {
    type Container = Container;
    type StreamObjectNames = Names;
}

impl containers::GuestContainer for Container {
    fn name(&self) -> Result<String, String> {
        self.inner.name()
    }

    fn info(&self) -> Result<values::ContainerMetadata, String> {
        let info = self.inner.info()?;
        Ok(values::ContainerMetadata { name: info.name, created_at: info.created_at })
    }

    fn get_data(&self, name: String, start: u64, end: u64) -> Result<values::IncomingValue, String> {
        let value = self.inner.get_data(&self.name_of(&name), start, end)?;
        Ok(values::IncomingValue::new(Incoming(value)))
    }

    fn write_data(&self, name: String, data: values::OutgoingValueBorrow<'_>) -> Result<(), String> {
        self.inner.write_data(&self.name_of(&name), &data.get::<Outgoing>().0)
    }

    fn list_objects(&self) -> Result<containers::StreamObjectNames, String> {
        let inner = self.inner.list_objects()?;
        Ok(containers::StreamObjectNames::new(Names { inner, prefix: self.prefix.clone() }))
    }

    fn delete_object(&self, name: String) -> Result<(), String> {
        self.inner.delete_object(&self.name_of(&name))
    }

    fn delete_objects(&self, names: Vec<String>) -> Result<(), String> {
        let names: Vec<String> = names.iter().map(|name| self.name_of(name)).collect();
        self.inner.delete_objects(&names)
    }

    fn has_object(&self, name: String) -> Result<bool, String> {
        self.inner.has_object(&self.name_of(&name))
    }

    fn object_info(&self, name: String) -> Result<values::ObjectMetadata, String> {
        let info = self.inner.object_info(&self.name_of(&name))?;
        Ok(values::ObjectMetadata { name, container: info.container, created_at: info.created_at, size: info.size })
    }

    fn clear(&self) -> Result<(), String> {
        self.inner.clear()
    }
}

impl containers::GuestStreamObjectNames for Names {
    fn read_stream_object_names(&self, len: u64) -> Result<(Vec<String>, bool), String> {
        let (names, end) = self.inner.read_stream_object_names(len)?;
        Ok((names.iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned).collect(), end))
    }

    fn skip_stream_object_names(&self, num: u64) -> Result<(u64, bool), String> {
        // Only its own count.
        let mut skipped = 0;
        while skipped < num {
            let (names, end) = self.read_stream_object_names(num - skipped)?;
            skipped += names.len() as u64;
            if end {
                return Ok((skipped, true));
            }
        }
        Ok((skipped, false))
    }
}

fn id(id: values::ObjectId) -> Result<theirs::types::ObjectId, String> {
    Ok(theirs::types::ObjectId { container: id.container, object: format!("{}{}", prefix()?, id.object) })
}

fn own(inner: theirs::container::Container) -> Result<store::Container, String> {
    Ok(store::Container::new(Container { inner, prefix: prefix()? }))
}

impl store::Guest for Prefix {
    fn create_container(name: String) -> Result<store::Container, String> {
        own(theirs::blobstore::create_container(&name)?)
    }

    fn get_container(name: String) -> Result<store::Container, String> {
        own(theirs::blobstore::get_container(&name)?)
    }

    fn delete_container(name: String) -> Result<(), String> {
        theirs::blobstore::delete_container(&name)
    }

    fn container_exists(name: String) -> Result<bool, String> {
        theirs::blobstore::container_exists(&name)
    }

    fn copy_object(src: values::ObjectId, dest: values::ObjectId) -> Result<(), String> {
        theirs::blobstore::copy_object(&id(src)?, &id(dest)?)
    }

    fn move_object(src: values::ObjectId, dest: values::ObjectId) -> Result<(), String> {
        theirs::blobstore::move_object(&id(src)?, &id(dest)?)
    }
}

bindings::export!(Prefix with_types_in bindings);
