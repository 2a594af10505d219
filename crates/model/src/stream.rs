//! What the settings of a `messaging-jetstream` provider say of its stream. Parsed in one place, so that the manifest's
//! rules and the provider agree.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::messaging::{MAX_SUBJECT, MessagingError, Pattern};
use crate::unit::{ByteSize, Millis, UnitError};

/// The longest name of a stream, bytes.
pub const MAX_NAME: usize = 200;
/// The most subjects of a stream that is made.
pub const MAX_SUBJECTS: usize = 64;
/// The shortest time a stream that is made keeps a message: JetStream takes nothing shorter than the time in which it
/// knows a message that is sent twice, which is made to fit.
const MIN_AGE: Millis = Millis::secs(1);

/// Why settings say nothing that can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// There is no `stream`, or it is no name of one.
    #[error("the `stream` is a name of 1 to {MAX_NAME} letters, digits, `-` and `_`")]
    Name,
    /// A subject that is none.
    #[error(transparent)]
    Subject(#[from] MessagingError),
    /// None, or too many.
    #[error("a stream has 1 to {MAX_SUBJECTS} subjects, this one has {0}")]
    Subjects(usize),
    /// A setting that takes one of a few words.
    #[error("`{setting}` is {words}")]
    Word {
        /// Which.
        setting: &'static str,
        /// The words it takes.
        words: &'static str,
    },
    /// A quantity that is none.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// A quantity out of its range.
    #[error("`{0}` is too little")]
    Small(&'static str),
    /// Says something of a stream that is not to be made.
    #[error("`{0}` is of no use without `subjects`: it says how the stream is made")]
    Made(&'static str),
}

/// When a stream lets a message go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// By age and size alone.
    #[default]
    Limits,
    /// Also when every group that takes it has handled it.
    Interest,
    /// When it was handled; no two groups may take the same.
    Workqueue,
}

impl Retention {
    /// As JetStream says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Interest => "interest",
            Self::Workqueue => "workqueue",
        }
    }
}

/// Where a group that is new begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deliver {
    /// With what is sent from then on.
    #[default]
    New,
    /// With the first message of the stream.
    All,
}

/// The stream, and how it is made where it is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamSettings {
    /// Its name.
    pub name: String,
    /// What it keeps; it is not made where there are none.
    pub subjects: Vec<Pattern>,
    /// When it lets messages go.
    pub retention: Retention,
    /// How long it keeps a message.
    pub max_age: Option<Millis>,
    /// How much it keeps.
    pub max_bytes: Option<ByteSize>,
    /// Where a group that is new begins.
    pub deliver: Deliver,
}

impl StreamSettings {
    /// Reads the settings of a provider.
    ///
    /// # Errors
    /// What is wrong, and in which setting.
    pub fn read(config: &BTreeMap<String, String>) -> Result<Self, (&'static str, StreamError)> {
        let text = |name: &str| config.get(name).map(String::as_str);
        let name = text("stream").unwrap_or_default();
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(("stream", StreamError::Name));
        }
        let subjects = text("subjects").map_or(Ok(Vec::new()), subjects).map_err(|cause| ("subjects", cause))?;
        if subjects.is_empty()
            && let Some(setting) = ["retention", "max-age", "max-bytes"].into_iter().find(|s| text(s).is_some())
        {
            return Err((setting, StreamError::Made(setting)));
        }
        let retention = match text("retention") {
            None | Some("limits") => Retention::Limits,
            Some("interest") => Retention::Interest,
            Some("workqueue") => Retention::Workqueue,
            Some(_) => return Err(word("retention", "`limits`, `interest` or `workqueue`")),
        };
        let deliver = match text("deliver") {
            None | Some("new") => Deliver::New,
            Some("all") => Deliver::All,
            Some(_) => return Err(word("deliver", "`new` or `all`")),
        };
        let max_age = quantity("max-age", text("max-age"), MIN_AGE)?;
        let max_bytes = quantity("max-bytes", text("max-bytes"), ByteSize(1))?;
        Ok(Self { name: name.to_owned(), subjects, retention, max_age, max_bytes, deliver })
    }
}

fn word(setting: &'static str, words: &'static str) -> (&'static str, StreamError) {
    (setting, StreamError::Word { setting, words })
}

fn subjects(written: &str) -> Result<Vec<Pattern>, StreamError> {
    let longest = MAX_SUBJECTS * (MAX_SUBJECT + 2);
    let all: Vec<&str> = written.get(..longest.min(written.len())).unwrap_or_default().split(',').collect();
    if written.len() > longest || all.len() > MAX_SUBJECTS || written.trim().is_empty() {
        return Err(StreamError::Subjects(if written.trim().is_empty() { 0 } else { all.len() }));
    }
    all.into_iter().map(|one| Ok(one.trim().parse()?)).collect()
}

fn quantity<T: FromStr<Err = UnitError> + PartialOrd>(
    setting: &'static str,
    written: Option<&str>,
    least: T,
) -> Result<Option<T>, (&'static str, StreamError)> {
    let Some(written) = written else { return Ok(None) };
    let value: T = written.parse().map_err(|cause: UnitError| (setting, cause.into()))?;
    if value < least { Err((setting, StreamError::Small(setting))) } else { Ok(Some(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<StreamSettings, &'static str> {
        let config = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        StreamSettings::read(&config).map_err(|(setting, _)| setting)
    }

    #[test]
    fn settings_are_read_once_and_whole() {
        let plain = read(&[("stream", "ORDERS")]).unwrap();
        assert_eq!((plain.retention, plain.deliver, plain.subjects.len()), (Retention::Limits, Deliver::New, 0));
        let all = read(&[
            ("stream", "ORDERS"),
            ("subjects", "orders.>, jobs.*"),
            ("retention", "interest"),
            ("max-age", "168h"),
            ("max-bytes", "1GiB"),
            ("deliver", "all"),
        ])
        .unwrap();
        assert_eq!(all.subjects, ["orders.>".parse().unwrap(), "jobs.*".parse().unwrap()]);
        assert_eq!((all.max_age, all.max_bytes), (Some(Millis::secs(168 * 3600)), Some(ByteSize::mib(1024))));
        assert_eq!((all.retention, all.deliver), (Retention::Interest, Deliver::All));
        for (bad, setting) in [
            (&[][..], "stream"),
            (&[("stream", "a.b")], "stream"),
            (&[("stream", "a"), ("subjects", "")], "subjects"),
            (&[("stream", "a"), ("subjects", "a,,b")], "subjects"),
            (&[("stream", "a"), ("max-age", "1h")], "max-age"),
            (&[("stream", "a"), ("subjects", "a"), ("max-age", "1ms")], "max-age"),
            (&[("stream", "a"), ("subjects", "a"), ("max-bytes", "0B")], "max-bytes"),
            (&[("stream", "a"), ("subjects", "a"), ("retention", "none")], "retention"),
            (&[("stream", "a"), ("deliver", "last")], "deliver"),
        ] {
            assert_eq!(read(bad), Err(setting), "{bad:?}");
        }
        let many = vec!["a"; MAX_SUBJECTS + 1].join(",");
        assert_eq!(read(&[("stream", "a"), ("subjects", &many)]), Err("subjects"));
    }
}
