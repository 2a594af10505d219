//! The one table: measure, figure, goal, and whether it was met. Says what the machine was doing meanwhile.

use std::fmt;

use serde::Serialize;

/// A figure and its goal.
#[derive(Debug, Serialize)]
struct Row {
    measure: String,
    figure: String,
    goal: String,
    met: Option<bool>,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Table {
    machine: String,
    load_before: String,
    rows: Vec<Row>,
}

impl Table {
    /// An empty table; notes the machine and its load now.
    pub fn new() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        Self {
            machine: format!("{} x {}, kernel {}", cores, model.trim_start_matches([' ', '\t', ':']), kernel.trim()),
            load_before: read("/proc/loadavg").trim().to_owned(),
            rows: Vec::new(),
        }
    }

    /// A figure without a goal.
    pub fn note(&mut self, measure: &str, figure: String) {
        eprintln!("  {measure}: {figure}");
        self.rows.push(Row { measure: measure.to_owned(), figure, goal: String::new(), met: None });
    }

    /// A figure that should be at least `goal`.
    pub fn at_least(&mut self, measure: &str, value: f64, goal: f64, unit: &str, detail: &str) {
        self.row(measure, value, goal, unit, detail, ("≥", value >= goal));
    }

    /// A figure that should be at most `goal`.
    pub fn at_most(&mut self, measure: &str, value: f64, goal: f64, unit: &str, detail: &str) {
        self.row(measure, value, goal, unit, detail, ("≤", value <= goal));
    }

    fn row(&mut self, measure: &str, value: f64, goal: f64, unit: &str, detail: &str, (sign, met): (&str, bool)) {
        let figure = format!(
            "{} {unit}{}",
            short(value),
            if detail.is_empty() { String::new() } else { format!(" ({detail})") }
        );
        eprintln!("  {measure}: {figure}");
        let goal = format!("{sign} {} {unit}", short(goal));
        self.rows.push(Row { measure: measure.to_owned(), figure, goal, met: Some(met) });
    }
}

fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; load before: {}\n", self.machine, self.load_before)?;
        writeln!(f, "| Measure | Figure | Goal | Met |\n|---|---|---|---|")?;
        for row in &self.rows {
            let met = match row.met {
                Some(true) => "yes",
                Some(false) => "**no**",
                None => "",
            };
            writeln!(f, "| {} | {} | {} | {met} |", row.measure, row.figure, row.goal)?;
        }
        Ok(())
    }
}
