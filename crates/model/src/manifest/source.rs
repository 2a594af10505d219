//! Where a component's bytes come from: a path that stays in the app's folder, or an OCI reference that is pinned.

use toml::Spanned as TomlSpanned;
use toml::de::DeValue;

use super::Findings;
use super::types::{ComponentSource, OciReference, Spanned};
use crate::digest::Digest;
use crate::rules::{Code, Violation, shown};

/// Reads the value of `source`.
pub(super) fn read(value: &TomlSpanned<DeValue<'_>>, out: &mut Findings<'_>) -> Option<Spanned<ComponentSource>> {
    let (read, span) = match value.get_ref() {
        DeValue::String(text) => (path(text).map(ComponentSource::Path), value.span()),
        DeValue::Table(table) => {
            let oci = table.get("oci")?;
            (oci_reference(oci.get_ref().as_str()?).map(ComponentSource::Oci), oci.span())
        }
        _ => return None,
    };
    match read {
        Ok(value) => Some(Spanned { value, span }),
        Err(violation) => {
            out.add(span, violation);
            None
        }
    }
}

/// A path inside the app's folder, without `.` segments.
fn path(text: &str) -> Result<String, Violation> {
    let bad = |message: String, help: &str| Err(Violation::new(Code::SourcePath, message).help(help));
    let written = shown(text);
    if text.trim().is_empty() {
        return bad("the path of the component is empty".to_owned(), "write a path such as \"counter.wasm\"");
    }
    if text.contains("://") {
        return bad(
            format!("`{written}` is a URL, and components are not downloaded from URLs"),
            "put the file into the app's folder, or write `{ oci = \"…@sha256:…\" }`",
        );
    }
    if text.contains('\\') || text.chars().any(char::is_control) {
        let help = format!("separate folders with `/`: write \"{}\"", shown(&text.replace('\\', "/")));
        return bad(format!("`{written}` has a `\\` or a control character"), &help);
    }
    let drive = text.as_bytes().get(1) == Some(&b':');
    if text.starts_with('/') || text.starts_with('~') || drive {
        return bad(
            format!("`{written}` is not relative to the app's folder, so it means another file on another machine"),
            "copy or build the component into the app's folder and write its path from there",
        );
    }
    if text.split('/').any(|segment| segment == "..") {
        return bad(
            format!("`{written}` leads out of the app's folder; only files inside it belong to the app"),
            "copy or build the component into the app's folder, and remove `..`",
        );
    }
    let segments: Vec<&str> = text.split('/').filter(|s| !s.is_empty() && *s != ".").collect();
    if segments.is_empty() || text.ends_with('/') {
        return bad(format!("`{written}` is a folder"), "write the path of the component's file");
    }
    Ok(segments.join("/"))
}

const EXAMPLE: &str =
    "write `registry/repository@sha256:<digest>`, for example `registry.example/shop/counter@sha256:…`";

fn oci_reference(text: &str) -> Result<OciReference, Violation> {
    let written = shown(text);
    let bad = |why: &str| Violation::new(Code::OciReference, format!("`{written}` {why}")).help(EXAMPLE);
    if text.contains("://") {
        return Err(bad("has a scheme; OCI references have none"));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let (registry, rest) = name.split_once('/').ok_or_else(|| bad("names no registry"))?;
    if !registry.contains(['.', ':']) && registry != "localhost" {
        return Err(bad("names no registry: there is no default one"));
    }
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    let registry_ok = registry.chars().all(|c| part(c) || c == ':') && !registry.starts_with(':');
    let repository_ok = repository.split('/').all(|p| !p.is_empty() && p.chars().all(part) && !p.starts_with('.'));
    let tag_ok = tag.is_none_or(|t| {
        (1..=128).contains(&t.len()) && t.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    if !registry_ok || !repository_ok || !tag_ok {
        return Err(bad("is not an OCI reference: use lower-case letters, digits and `._-`"));
    }
    let Some(digest) = digest else {
        let message = format!("`{written}` has no digest; a tag can be moved to other bytes after the app was checked");
        let help = format!("pin it: `{written}@sha256:<digest>`; the registry or `sidereal inspect` tells the digest");
        return Err(Violation::new(Code::OciDigest, message).help(help));
    };
    let digest = digest.parse::<Digest>().map_err(|err| {
        Violation::new(Code::OciDigest, format!("`{}` is {err}", shown(digest)))
            .help("copy the digest whole, in lower case")
    })?;
    Ok(OciReference {
        registry: registry.to_owned(),
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (written, read) in
            [("a.wasm", "a.wasm"), ("./a.wasm", "a.wasm"), ("build//a.wasm", "build/a.wasm"), ("..a/b..", "..a/b..")]
        {
            assert_eq!(path(written).unwrap(), read);
        }
        for bad in ["", " ", "/a", "../a", "a/../b", "a/..", "~/a", "C:/a", "a\\b", "a\0", ".", "a/", "http://a/b"] {
            assert_eq!(path(bad).unwrap_err().code, Code::SourcePath, "{bad}");
        }
    }

    #[test]
    fn references_are_pinned() {
        let digest = Digest::of(b"x");
        let read = oci_reference(&format!("registry.example:5000/shop/counter:1.0@{digest}")).unwrap();
        assert_eq!(
            (&*read.registry, &*read.repository, read.tag.as_deref()),
            ("registry.example:5000", "shop/counter", Some("1.0"))
        );
        assert_eq!(oci_reference("registry.example/counter:1.0").unwrap_err().code, Code::OciDigest);
        for bad in [
            "",
            "counter",
            "shop/counter",
            "https://registry.example/a",
            "registry.example/",
            "registry.example/A",
            "registry.example/a//b",
        ] {
            assert_eq!(oci_reference(&format!("{bad}@{digest}")).unwrap_err().code, Code::OciReference, "{bad}");
        }
    }
}
