//! `wasi:sockets/ip-name-lookup` of WASI 0.3: gives out addresses that stand for names, see [`crate::sockets::names`].

use wasmtime::component::{Accessor, HasSelf};

use super::bindings::wasi::sockets::ip_name_lookup::{ErrorCode, Host, HostWithStore};
use super::bindings::wasi::sockets::types::IpAddress;
use crate::ctx::Ctx;
use crate::sockets::grant::Code;

impl From<Code> for ErrorCode {
    fn from(code: Code) -> Self {
        match code {
            Code::AccessDenied => Self::AccessDenied,
            Code::TooManyNames => Self::Other(Some("out-of-memory".to_owned())),
            // A look-up asks nobody, so what else fails is what was asked.
            _ => Self::InvalidArgument,
        }
    }
}

impl Host for Ctx {}

impl HostWithStore<Ctx> for HasSelf<Ctx> {
    async fn resolve_addresses(
        accessor: &Accessor<Ctx, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ErrorCode>> {
        let found = accessor.with(|mut access| access.get().look_up(&name));
        Ok(found.map(|address| vec![address.into()]).map_err(ErrorCode::from))
    }
}
