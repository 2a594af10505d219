//! `docs/plugin-kit.md` shows parts of the sample driver, and names what there is.

use std::path::Path;

fn read(folder: &Path) -> String {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| std::fs::read_to_string(file).unwrap()).collect()
}

#[test]
fn the_page_shows_what_the_sample_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../../docs/plugin-kit.md")).unwrap();
    let sample = read(&root.join("tests/sample"));
    let shown: Vec<&str> = page.split("```rust\n").skip(1).map(|part| part.split_once("```").unwrap().0).collect();
    assert_eq!(shown.len(), 4);
    for part in shown {
        assert!(sample.contains(part), "the sample has no such lines:\n{part}");
    }
    // Every kind of field, and every function that reads one.
    let source = read(&root.join("src"));
    for (file, begins) in [("hcl.rs", "    pub fn "), ("config.rs", "pub fn ")] {
        let text = std::fs::read_to_string(root.join("src").join(file)).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix(begins)) {
            let name = line.split(['(', '<']).next().unwrap();
            let known = ["new", "spec", "decode"].contains(&name);
            assert!(known || page.contains(&format!("`{name}`")) || page.contains(&format!("::{name}`")), "{name}");
        }
    }
    // All that a driver is asked, whether it may be left out, and all that it can do.
    let driver = std::fs::read_to_string(root.join("src/driver.rs")).unwrap();
    let part = |begins: &str| driver.split_once(begins).unwrap().1.split_once("\n}").unwrap().0;
    let asked = part("pub trait Driver");
    let mut methods = 0;
    for method in asked.split("\n    fn ").skip(1) {
        let name = method.split('(').next().unwrap();
        // One that ends with its signature must be there.
        let (signature, body) = method.split_at(method.find([';', '{']).unwrap());
        let optional = body.starts_with('{');
        let marked = page.contains(&format!("`{name}` \\*"));
        assert!(page.contains(&format!("`{name}`")) && marked == optional, "{name}: {signature}");
        methods += 1;
    }
    assert!(methods > 15, "{methods}");
    for line in part("pub struct Capabilities {").lines().filter_map(|line| line.trim().strip_prefix("pub ")) {
        let name = line.split(':').next().unwrap();
        assert!(page.contains(&format!("`{name}`")) || page.contains(&format!(" {name}: ")), "{name}");
    }
    for name in page.split('`').filter_map(|word| word.strip_prefix("config::")) {
        assert!(source.contains(&format!("pub fn {name}<")), "{name}");
    }
}
