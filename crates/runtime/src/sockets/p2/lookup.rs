//! `wasi:sockets/ip-name-lookup`: gives out addresses that stand for names, see [`crate::sockets::names`].

use std::net::IpAddr;

use wasmtime::component::Resource;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

use super::bindings::wasi::sockets::ip_name_lookup::{Host, HostResolveAddressStream};
use super::bindings::wasi::sockets::network::IpAddress;
use super::{Answer, Network};
use crate::ctx::Ctx;

/// What is left to be told of a look-up.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "the generated module names it as public")]
pub struct Answers(Option<IpAddr>);

#[async_trait::async_trait]
impl Pollable for Answers {
    async fn ready(&mut self) {}
}

impl Host for Ctx {
    fn resolve_addresses(&mut self, _: Resource<Network>, name: String) -> Answer<Resource<Answers>> {
        let address = self.look_up(&name)?;
        Ok(self.table.push(Answers(Some(address)))?)
    }
}

impl HostResolveAddressStream for Ctx {
    fn resolve_next_address(&mut self, answers: Resource<Answers>) -> Answer<Option<IpAddress>> {
        Ok(self.table.get_mut(&answers)?.0.take().map(IpAddress::from))
    }

    fn subscribe(&mut self, answers: Resource<Answers>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(&mut self.table, answers)
    }

    fn drop(&mut self, answers: Resource<Answers>) -> wasmtime::Result<()> {
        self.table.delete(answers)?;
        Ok(())
    }
}
