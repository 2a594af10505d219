//! Limits and reuse: inside what the tenant may ask for, and large enough that a call can succeed.

use crate::app::LockedComponent;
use crate::limits::Limits;
use crate::name::ComponentName;
use crate::rules::{Code, Found, MAX_REUSE_REQUESTS, Subject, Violation};
use crate::unit::{ByteSize, Millis};

/// How a limit is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// `200ms`.
    Duration,
    /// `64MiB`.
    Size,
    /// `100`.
    Count,
}

/// One limit: its name in manifests, its unit, the smallest useful value, and its place in [`Limits`].
#[derive(Debug, Clone, Copy)]
pub struct LimitField {
    /// The key under `limits`.
    pub name: &'static str,
    /// How values are written.
    pub unit: Unit,
    /// The smallest value that is accepted, in milliseconds, bytes or pieces.
    pub floor: u64,
    /// What it bounds.
    pub doc: &'static str,
    /// Reads it.
    pub get: fn(&Limits) -> u64,
    /// Writes it; counts saturate.
    pub set: fn(&mut Limits, u64),
}

impl LimitField {
    /// A value of this limit as a person would write it.
    pub fn show(&self, value: u64) -> String {
        match self.unit {
            Unit::Duration => Millis(value).to_string(),
            Unit::Size => ByteSize(value).to_string(),
            Unit::Count => value.to_string(),
        }
    }
}

fn to_u32(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

macro_rules! field {
    ($name:literal, $unit:ident, $floor:expr, $field:ident.0, $doc:literal) => {
        LimitField {
            name: $name,
            unit: Unit::$unit,
            floor: $floor,
            doc: $doc,
            get: |l| l.$field.0,
            set: |l, v| l.$field.0 = v,
        }
    };
    ($name:literal, $unit:ident, $floor:expr, $field:ident, $doc:literal) => {
        LimitField {
            name: $name,
            unit: Unit::$unit,
            floor: $floor,
            doc: $doc,
            get: |l| u64::from(l.$field),
            set: |l, v| l.$field = to_u32(v),
        }
    };
}

/// The limits a manifest may set. `stack` is not among them: all components of a host share the engine that fixes it.
pub const LIMIT_FIELDS: &[LimitField] = &[
    field!("cpu", Duration, 10, cpu.0, "CPU time of one call, in steps of 10 ms"),
    field!("wall", Duration, 10, wall.0, "Wall time of one call, from the request head to the end of the response"),
    field!("memory", Size, 64 * 1024, memory.0, "Linear memory of one instance, all memories together"),
    field!("table-elements", Count, 1, table_elements, "Elements in all tables of one instance"),
    field!("handles", Count, 16, handles, "Resource handles one instance holds at once"),
    field!("hostcall-copy", Size, 4096, hostcall_copy.0, "Bytes one host call may copy out of the guest"),
    field!("request-body", Size, 0, request_body.0, "Bytes of one request body"),
    field!("response-body", Size, 0, response_body.0, "Bytes of one response body"),
    field!("concurrency", Count, 1, concurrency, "Calls that run at once on one host; one more is answered 503"),
    field!("subrequests", Count, 0, subrequests, "Outgoing requests one call may make"),
    field!("log-per-call", Size, 0, log_per_call.0, "Bytes one call may log; the rest is dropped and counted"),
    field!("log-rate", Size, 0, log_rate.0, "Bytes a second the component may log on one host"),
];

/// Why a tenant's ceilings cannot be held, one sentence each: a host has room for [`Limits::ceiling`], and what is below a
/// floor lets no call succeed.
pub fn ceiling_problems(ceilings: &Limits) -> Vec<String> {
    let most = Limits::ceiling();
    let mut problems = Vec::new();
    for field in LIMIT_FIELDS {
        let (value, most) = ((field.get)(ceilings), (field.get)(&most));
        if !(field.floor..=most).contains(&value) {
            let (value, floor, most) = (field.show(value), field.show(field.floor), field.show(most));
            problems.push(format!("the ceiling of {} is {value}; it is {floor} to {most}", field.name));
        }
    }
    if ceilings.stack != most.stack {
        let (value, fixed) = (ceilings.stack, most.stack);
        problems.push(format!("the ceiling of stack is {value}; it is {fixed}, the same for every component"));
    }
    problems
}

/// Checks the limits of one component against its tenant's ceilings.
pub(crate) fn check(name: &ComponentName, component: &LockedComponent, ceilings: &Limits, out: &mut Vec<Found>) {
    for field in LIMIT_FIELDS {
        let (value, ceiling) = ((field.get)(&component.limits), (field.get)(ceilings));
        let subject = || Subject::Limit(name.clone(), field.name);
        if ceiling < field.floor {
            // Of before ceilings were checked. Whatever the component says, it is not what has to change.
            let (ceiling, floor) = (field.show(ceiling), field.show(field.floor));
            let message = format!(
                "the tenant's ceiling of {} is {ceiling}, which is too small for any call of component `{name}` to succeed",
                field.name
            );
            let help = format!(
                "have the operator raise it to at least {floor}: sidereal tenant-settings set --ceiling {}={floor}",
                field.name
            );
            out.push(Found::at(subject(), Violation::new(Code::LimitAboveCeiling, message).help(help)));
        } else if value > ceiling {
            let (value, ceiling) = (field.show(value), field.show(ceiling));
            let message = format!(
                "component `{name}` asks for {} = {value}, above the tenant's ceiling of {ceiling}",
                field.name
            );
            let help = format!("set it to at most {ceiling}, or have the operator raise the tenant's ceiling");
            out.push(Found::at(subject(), Violation::new(Code::LimitAboveCeiling, message).help(help)));
        } else if value < field.floor {
            let (value, floor) = (field.show(value), field.show(field.floor));
            let message =
                format!("component `{name}` sets {} = {value}, which is too small for any call to succeed", field.name);
            let help = format!("set it to at least {floor}, or leave it out for the default");
            out.push(Found::at(subject(), Violation::new(Code::LimitBelowFloor, message).help(help)));
        }
    }
    let fixed = Limits::default().stack;
    if component.limits.stack != fixed {
        let message = format!(
            "component `{name}` sets stack = {}, and the stack is the same for every component",
            component.limits.stack
        );
        out.push(Found::at(
            Subject::Component(name.clone()),
            Violation::new(Code::LimitFixed, message).help(format!("set it to {fixed}")),
        ));
    }
    if component.limits.cpu > component.limits.wall {
        let message = format!(
            "component `{name}` may use {} of CPU time, and its calls end after {} of wall time: the CPU limit is never reached",
            component.limits.cpu, component.limits.wall
        );
        let help = "set `wall` at least as large as `cpu`";
        out.push(Found::at(Subject::Limit(name.clone(), "cpu"), Violation::new(Code::LimitIdle, message).help(help)));
    }
    if let Some(reuse) = component.reuse {
        let mut bad = |message: String, help: String| {
            out.push(Found::at(Subject::Reuse(name.clone()), Violation::new(Code::Reuse, message).help(help)));
        };
        if reuse.requests == 0 || reuse.requests > MAX_REUSE_REQUESTS {
            bad(
                format!(
                    "component `{name}` reuses an instance for {} calls, which is outside 1 to {MAX_REUSE_REQUESTS}",
                    reuse.requests
                ),
                "set `requests` to 1 or more, or leave `reuse` out for a fresh instance per call".to_owned(),
            );
        }
        if reuse.idle.0 == 0 || reuse.idle > MAX_REUSE_IDLE {
            bad(
                format!(
                    "component `{name}` keeps an idle instance for {}, which is outside 1ms to {MAX_REUSE_IDLE}",
                    reuse.idle
                ),
                "set `idle` to a few seconds, for example \"10s\"".to_owned(),
            );
        }
    }
}

/// The longest time an idle instance may be kept.
pub const MAX_REUSE_IDLE: Millis = Millis::secs(3600);
