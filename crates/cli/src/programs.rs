//! The programs that apps may run as external providers, and what the operator lets them have: each is there and can be run
//! before anything starts.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use api::{Code, Problem};
use model::ProviderName;
use node::external::{Program, Programs};

use crate::args::{Allowed, Up};

/// As named on the command line.
///
/// # Errors
/// Which of them is none, and why.
pub fn named(args: &Up) -> anyhow::Result<Programs> {
    let mut programs = Programs::new();
    for (name, path) in &args.external {
        let bad = |why: String| {
            let help = "write NAME=/path/to/program, with the whole path of a file that this user may run";
            problem(name, path, &why).help(help)
        };
        if !path.is_absolute() {
            return Err(bad("the path does not begin with `/`".to_owned()).into());
        }
        let file = fs::metadata(path).map_err(|cause| bad(cause.to_string()))?;
        if !file.is_file() {
            return Err(bad("it is no file".to_owned()).into());
        }
        rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
            .map_err(|cause| bad(format!("it cannot be run: {cause}")))?;
        if programs.insert(name.clone(), Program::at(path)).is_some() {
            return Err(bad("another program has this name".to_owned()).into());
        }
    }
    for (name, what) in &args.external_allow {
        let Some(program) = programs.get_mut(name) else {
            let text = format!("--external-allow {name}=…: there is no external program of this name");
            return Err(Problem::new(Code::RequestInvalid, text).help("name it with `--external` first").into());
        };
        match what {
            Allowed::Network => program.network = true,
            Allowed::Read(path) => {
                fs::metadata(path).map_err(|cause| {
                    let text = format!("--external-allow {name}={}: {cause}", path.display());
                    Problem::new(Code::RequestInvalid, text).help("write NAME=/path of a file or folder that is there")
                })?;
                program.read.push(path.clone());
            }
        }
    }
    Ok(programs)
}

/// Programs that run as a user of their own can be run by everybody.
///
/// # Errors
/// Which of them cannot.
pub fn open_to_others(programs: &Programs) -> anyhow::Result<()> {
    for (name, program) in programs {
        let mode = fs::metadata(&program.path)?.mode();
        if mode & 0o005 != 0o005 {
            let text = "it runs as a user of its own, and only this one may read and run it".to_owned();
            let help = format!("let everybody: `chmod o+rx {}`", program.path.display());
            return Err(problem(name, &program.path, &text).help(help).into());
        }
    }
    Ok(())
}

fn problem(name: &ProviderName, path: &Path, why: &str) -> Problem {
    Problem::new(Code::RequestInvalid, format!("--external {name}={}: {why}", path.display()))
}
