//! The sockets of one component: what its `allow-hosts` grant, by way of the node.

use std::io;
use std::sync::Arc;

use api::services::datagram::{DatagramEnd, Packet};
use futures::FutureExt;
use futures::future::BoxFuture;
use model::egress::{AllowedHost, Transport};
use model::{AppName, ComponentName};
use providers::dial::{Caller, DialError, Dialer, Target};
use runtime::{Connection, Datagrams, Opening, Received, SocketFault, Sockets};

use crate::dialer::NodeDialer;

/// Opens sockets for one component.
pub(crate) struct ComponentSockets {
    app: AppName,
    component: ComponentName,
    granted: Vec<AllowedHost>,
    dialer: Arc<NodeDialer>,
}

impl ComponentSockets {
    /// `None` where no entry is about sockets.
    pub(crate) fn new(
        app: &AppName,
        component: &ComponentName,
        allow_hosts: &[String],
        dialer: &Arc<NodeDialer>,
    ) -> Option<Self> {
        let (granted, _) = split(allow_hosts);
        let (app, component, dialer) = (app.clone(), component.clone(), dialer.clone());
        (!granted.is_empty()).then_some(Self { app, component, granted, dialer })
    }

    fn target(&self, host: String, port: u16) -> Target {
        Target { app: self.app.clone(), caller: Caller::Component(self.component.clone()), host, port }
    }
}

/// The entries of `allow-hosts` that are about sockets, and the texts of the others.
pub(crate) fn split(allow_hosts: &[String]) -> (Vec<AllowedHost>, Vec<String>) {
    let for_sockets = |text: &String| AllowedHost::parse(text).filter(AllowedHost::is_for_sockets).ok_or(text.clone());
    let (granted, web): (Vec<_>, Vec<_>) = allow_hosts.iter().map(for_sockets).partition(Result::is_ok);
    (granted.into_iter().flatten().collect(), web.into_iter().filter_map(Result::err).collect())
}

fn fault(error: DialError) -> SocketFault {
    match error {
        DialError::Dns { .. } => SocketFault::Dns,
        DialError::Denied(why) => SocketFault::Denied(why),
        DialError::Limited(_) => SocketFault::Limited,
        DialError::Connect(_) => SocketFault::Refused,
        DialError::TimedOut { .. } => SocketFault::TimedOut,
        DialError::Unavailable(why) => SocketFault::Other(why),
    }
}

impl Sockets for ComponentSockets {
    fn grants(&self, transport: Transport, host: &str, port: u16) -> bool {
        self.granted.iter().any(|entry| entry.opens(transport, host, port))
    }

    fn names(&self, host: &str) -> bool {
        self.granted.iter().any(|entry| entry.names(host))
    }

    fn connect(&self, host: String, port: u16) -> Opening<Connection> {
        let (dialer, target) = (self.dialer.clone(), self.target(host, port));
        async move {
            let line = dialer.dial(target).await.map_err(fault)?.stream;
            Ok(Arc::new(line) as Connection)
        }
        .boxed()
    }

    fn datagrams(&self, host: String, port: u16) -> Opening<Arc<dyn Datagrams>> {
        let (dialer, target) = (self.dialer.clone(), self.target(host, port));
        async move { Ok(Arc::new(Relayed(dialer.datagrams(target).await.map_err(fault)?)) as Arc<dyn Datagrams>) }
            .boxed()
    }
}

/// Datagrams that the node relays.
struct Relayed(DatagramEnd);

impl Datagrams for Relayed {
    fn try_send(&self, datagram: &[u8]) -> io::Result<()> {
        self.0.try_send(datagram)
    }

    fn try_recv(&self) -> io::Result<Option<Received>> {
        Ok(match self.0.try_recv(&mut Vec::new())? {
            Some(Packet::Data(datagram)) => Some(Received::Data(datagram.to_vec())),
            Some(Packet::Refused) => Some(Received::Refused),
            None => None,
        })
    }

    fn readable(&self) -> BoxFuture<'_, ()> {
        // Where the reactor is gone, the next attempt says so.
        self.0.readable().map(drop).boxed()
    }

    fn writable(&self) -> BoxFuture<'_, ()> {
        self.0.writable().map(drop).boxed()
    }
}
