//! The inputs that a run begins with: those written into a target, and those committed in a folder of its own, each under a name
//! that says what it is. They are text where that can be: `.hex` is digits with remarks, `.wat` a component, and any other
//! file is the input itself.

use std::path::{Path, PathBuf};

use crate::Target;

/// Where the committed inputs of a target are.
pub fn corpus_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The inputs a run begins with, in a fixed order.
///
/// # Panics
/// When the committed ones cannot be read.
pub fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut inputs = (target.seeds)();
    inputs.extend(committed(target).into_iter().map(|(_, input)| input));
    inputs
}

/// The committed inputs, each with its file, by name.
///
/// # Panics
/// When one cannot be read.
pub fn committed(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpus_folder(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|cause| panic!("{}: {cause}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("the corpus can be listed").path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), input(&file))).collect()
}

fn input(file: &Path) -> Vec<u8> {
    let raw = std::fs::read(file).unwrap_or_else(|cause| panic!("{}: {cause}", file.display()));
    let text = || std::str::from_utf8(&raw).unwrap_or_else(|_| panic!("{} is no text", file.display()));
    match file.extension().and_then(|end| end.to_str()) {
        Some("hex") => bytes_of(text()).unwrap_or_else(|| panic!("{} is not bytes in hexadecimal", file.display())),
        Some("wat") => wat::parse_str(text()).unwrap_or_else(|cause| panic!("{}: {cause}", file.display())),
        _ => raw,
    }
}

/// Pairs of hexadecimal digits; what follows a `#` on a line is a remark.
fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().bytes())
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_digits_with_remarks() {
        assert_eq!(bytes_of("00 ff # a length\n0a\n# nothing\n"), Some(vec![0, 255, 10]));
        assert_eq!((bytes_of("0"), bytes_of("xy")), (None, None));
    }
}
