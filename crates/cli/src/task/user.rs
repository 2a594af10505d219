//! The user that a job names for a task.

use api::{Code, Problem};
use node::confine::User;

use super::own::is_the_jobs;

/// Where the machine's users are.
const PASSWD: &str = "/etc/passwd";

/// Who it is: a name of the machine's, or numbers.
///
/// # Errors
/// Where there is no such user, or it is root.
pub fn find(written: &str) -> Result<User, Problem> {
    let known = std::fs::read_to_string(PASSWD).map_err(|cause| unread(written, &cause))?;
    resolve(&known, written)
}

/// A machine that is short of something for the moment has its users again soon.
fn unread(written: &str, cause: &std::io::Error) -> Problem {
    let code = if is_the_jobs(cause) { Code::ManifestInvalid } else { Code::StoreUnavailable };
    Problem::new(code, format!("`user` is {written}, and {PASSWD} cannot be read: {cause}"))
}

fn resolve(known: &str, written: &str) -> Result<User, Problem> {
    let lines = known.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some((name, User { uid: uid.parse().ok()?, gid: gid.parse().ok()? }))
    });
    let lines: Vec<(&str, User)> = lines.collect();
    let (first, group) = written.split_once(':').map_or((written, None), |(user, group)| (user, Some(group)));
    let found = match (first.parse::<u32>(), group.map(str::parse::<u32>)) {
        (Ok(uid), Some(Ok(gid))) => Some(User { uid, gid }),
        (Ok(uid), None) => {
            let gid = lines.iter().find(|(_, user)| user.uid == uid).map_or(uid, |(_, user)| user.gid);
            Some(User { uid, gid })
        }
        (Err(_), None) => lines.iter().find(|(name, _)| *name == first).map(|(_, user)| *user),
        _ => None,
    };
    let found = found.ok_or_else(|| {
        Problem::new(Code::ManifestInvalid, format!("`user` is {written}, and this machine has no such user"))
            .help("name a user of the client's /etc/passwd, or numbers as `1000` or `1000:1000`")
    })?;
    if found.uid == 0 || found.gid == 0 || found.uid == u32::MAX || found.gid == u32::MAX {
        let what = format!("`user` is {written}: no component is run as root, nor in its group");
        return Err(Problem::new(Code::ManifestInvalid, what)
            .help("take `user` away: the component has a user of its own then"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_that_cannot_be_read_for_the_moment_are_no_fault_of_the_job() {
        let code = |kind: std::io::ErrorKind| unread("web", &kind.into()).code;
        assert_eq!(code(std::io::ErrorKind::NotFound), Code::ManifestInvalid);
        assert_eq!(unread("web", &std::io::Error::from_raw_os_error(24)).code, Code::StoreUnavailable, "descriptors");
    }

    #[test]
    fn a_user_is_one_of_the_machine_s_and_never_root() {
        let known =
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:\nweb:x:1001:1002::/:\nbroken\nadm:x:5:0::/:\n";
        let is = |written: &str| resolve(known, written).ok().map(|user| (user.uid, user.gid));
        assert_eq!(
            (is("nobody"), is("web"), is("1001")),
            (Some((65534, 65534)), Some((1001, 1002)), Some((1001, 1002)))
        );
        assert_eq!((is("7"), is("7:8")), (Some((7, 7)), Some((7, 8))));
        for refused in ["root", "0", "0:5", "5:0", "adm", "broken", "none", "", "web:web", "4294967295", "-1"] {
            assert!(is(refused).is_none(), "{refused}");
        }
    }
}
