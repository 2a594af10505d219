//! What must have run where changes are accepted. Whoever develops on a machine that refuses a layer is told what was not run,
//! and goes on; where `SIDEREAL_MUST_RUN` says so, as in CI, a run that left out some of it has failed: nobody reads a line
//! in a run that is green.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};

/// Names what must have run, separated by commas.
const MUST_RUN: &str = "SIDEREAL_MUST_RUN";
/// What can be named. A line about one of these begins with its name and a colon, wherever it is written.
const AREAS: [&str; 1] = ["isolation"];

/// What must have run, as the environment says it.
///
/// # Errors
/// When it names something that there is not.
pub fn areas() -> anyhow::Result<Vec<String>> {
    let said = std::env::var(MUST_RUN).unwrap_or_default();
    let areas: Vec<String> = said.split(',').filter(|area| !area.is_empty()).map(str::to_owned).collect();
    match areas.iter().find(|area| !AREAS.contains(&area.as_str())) {
        Some(area) => bail!("{MUST_RUN} names `{area}`; there is {}", AREAS.join(", ")),
        None => Ok(areas),
    }
}

/// Judges the lines of what was not run.
///
/// # Errors
/// Where one is about what must have run.
pub fn check(not_run: &BTreeSet<&str>, areas: &[String]) -> anyhow::Result<()> {
    let about = |line: &str| line.split_once(": ").is_some_and(|(area, _)| areas.iter().any(|one| one == area));
    let left_out: Vec<&str> = not_run.iter().copied().filter(|line| about(line)).collect();
    ensure!(left_out.is_empty(), "{MUST_RUN} says that this must run, and it was not:\n{}", left_out.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_left_out_what_must_run_has_failed() {
        let lines = BTreeSet::from(["isolation: the escape drill: a C compiler", "a real Consul: isolation: none"]);
        let must = ["isolation".to_owned()];
        let said = check(&lines, &must).unwrap_err().to_string();
        assert!(said.contains("the escape drill") && !said.contains("Consul"), "{said}");
        assert!(check(&lines, &[]).is_ok(), "whoever develops goes on");
        assert!(check(&BTreeSet::from(["a real Consul: isolation: none"]), &must).is_ok());
    }

    #[test]
    fn ci_says_what_must_run() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for recipe in [".ci/run", ".ci/nightly"] {
            let text = std::fs::read_to_string(root.join(recipe)).unwrap();
            let said = text.lines().find_map(|line| line.strip_prefix("export SIDEREAL_MUST_RUN=")).unwrap();
            assert_eq!(said, AREAS.join(","), "{recipe}");
        }
    }
}
