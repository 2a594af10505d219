//! Why the platform does not start, in words that people can act on: what stands in the way is nearly always an address, a
//! disk or a file of theirs, and no defect of ours.

use std::io::ErrorKind;

use api::{Code, Problem};
use control::ControlError;
use node::NodeError;
use node::ingress::IngressError;
use store::StoreError;
use store::secrets::SecretsError;

/// Of the node and its ingress.
pub fn node(cause: NodeError) -> anyhow::Error {
    let text = cause.to_string();
    match cause {
        NodeError::Ingress(IngressError::Listen { source, .. }) => listen(text, source.kind(), "--listen"),
        NodeError::Ingress(IngressError::Worker(_)) => {
            Problem::new(Code::Busy, text).help("this user may have no more threads; `ulimit -u` says how many").into()
        }
        NodeError::Admin { cause, .. } => listen(text, cause.kind(), "--metrics-listen"),
        NodeError::Files { cause, .. } if cause.kind() == ErrorKind::PermissionDenied => {
            Problem::new(Code::Forbidden, text).help("check the permissions of the folder, or choose another").into()
        }
        NodeError::KeyDamaged(_) => Problem::new(Code::StoreUnavailable, text).help("remove the file it names").into(),
        NodeError::Files { .. } | NodeError::Objects { .. } | NodeError::Store(_) => storage_text(text),
    }
}

/// Of the control plane and its audit log.
pub fn control(cause: ControlError) -> anyhow::Error {
    let text = cause.to_string();
    match cause {
        ControlError::Listen { cause, .. } => listen(text, cause.kind(), "--api-listen"),
        ControlError::Token(_) => Problem::new(Code::Unauthorized, text)
            .help("remove the file `token` from the data directory: `sidereal up` makes another one")
            .into(),
        ControlError::Configs(_)
        | ControlError::Gone(_)
        | ControlError::Hosts(_)
        | ControlError::Audit { .. }
        | ControlError::Store(_)
        | ControlError::Unreadable { .. } => storage_text(text),
    }
}

/// Of the store.
pub fn storage(cause: StoreError) -> anyhow::Error {
    storage_text(cause.to_string())
}

/// Of the secrets.
pub fn sealed(cause: SecretsError) -> anyhow::Error {
    match cause {
        SecretsError::Store(cause) => storage(cause),
        other => Problem::new(Code::StoreUnavailable, other.to_string())
            .help("nothing was changed; restore the file from the backup that the store is from")
            .into(),
    }
}

/// Of a disk, or what is on it.
pub fn storage_text(text: String) -> anyhow::Error {
    Problem::new(Code::StoreUnavailable, text)
        .help(
            "nothing was changed; `sidereal doctor` looks for the cause, and a damaged file is restored from a backup",
        )
        .into()
}

fn listen(text: String, kind: ErrorKind, flag: &str) -> anyhow::Error {
    let code = if kind == ErrorKind::PermissionDenied { Code::Forbidden } else { Code::RequestInvalid };
    Problem::new(code, text).help(format!("choose another address with {flag}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_somebody_elses_doing_is_no_defect_of_ours() {
        let address = "192.0.2.1:80".parse().unwrap();
        let io = |kind: ErrorKind| std::io::Error::from(kind);
        let listen = |kind| NodeError::Ingress(IngressError::Listen { address, source: io(kind) });
        let told = |error: anyhow::Error| {
            let problem = error.downcast::<Problem>().unwrap();
            (problem.code, problem.help.unwrap())
        };
        let (code, help) = told(node(listen(ErrorKind::AddrNotAvailable)));
        assert!(code == Code::RequestInvalid && help.ends_with("--listen"), "{help}");
        assert_eq!(told(node(listen(ErrorKind::PermissionDenied))).0, Code::Forbidden);
        let (code, help) = told(control(ControlError::Listen { address, cause: io(ErrorKind::AddrNotAvailable) }));
        assert!(code == Code::RequestInvalid && help.ends_with("--api-listen"), "{help}");
        let full = NodeError::Files { action: "create", path: "x".into(), cause: io(ErrorKind::StorageFull) };
        assert_eq!(told(node(full)).0, Code::StoreUnavailable);
        assert_eq!(
            told(control(ControlError::Audit { dir: "x".into(), cause: "full".into() })).0,
            Code::StoreUnavailable
        );
        assert_eq!(told(control(ControlError::Token(3))).0, Code::Unauthorized);
    }
}
