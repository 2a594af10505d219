//! What a messaging link says: which subjects a component takes messages of, with whom it shares them, and how often a
//! message is tried. Parsed in one place, so that the manifest's rules, the node's broker and every provider agree.
//!
//! Subjects are those of NATS: tokens separated by dots. In a pattern `*` stands for one token, `>` for all that follow.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::app::{Link, LockedApp};
use crate::name::{AppName, ComponentName, Label, NameError};

/// The contract, as links name it.
pub const CONTRACT: &str = "wasmcloud:messaging";
/// The longest subject or pattern, bytes.
pub const MAX_SUBJECT: usize = 255;
/// The most patterns of one link.
pub const MAX_PATTERNS: usize = 16;
/// The largest body of a message, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// How often a message is handed to a component, at most, where the link does not say.
pub const DEFAULT_TRIES: u32 = 5;
/// The most a link may say.
pub const MAX_TRIES: u32 = 100;
/// Messages of one link that one shard handles at once, where the link does not say.
pub const DEFAULT_IN_FLIGHT: u32 = 16;
/// The most a link may say.
pub const MAX_IN_FLIGHT: u32 = 256;
/// What the subject of a message begins with that was tried as often as its link allows:
/// `dead-letter.<app>.<component>.<label>.<the message's own subject>`.
pub const DEAD_LETTER: &str = "dead-letter";

/// Why a text is not a subject or pattern, or a link's setting not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessagingError {
    /// Not a subject.
    #[error(
        "`{0}` is not a subject: use tokens of letters, digits, `-`, `_`, `$`, `:`, `/`, `=` separated by dots, at most 255 bytes"
    )]
    Subject(String),
    /// Not a pattern.
    #[error(
        "`{0}` is not a subject pattern: a subject in which `*` may stand for one token and a last `>` for all that follow"
    )]
    Pattern(String),
    /// No pattern, or too many.
    #[error("a link has 1 to {MAX_PATTERNS} subscriptions, this one has {0}")]
    Count(usize),
    /// Two patterns that some subject matches: who takes it would get it twice from some brokers and once from others.
    #[error("the subscriptions `{0}` and `{1}` overlap")]
    Overlap(Pattern, Pattern),
    /// Not a name.
    #[error("the queue group: {0}")]
    Group(NameError),
    /// Not a number in its range.
    #[error("`{setting}` is a whole number from 1 to {max}, not `{written}`")]
    Number {
        /// Which setting.
        setting: &'static str,
        /// What stands there, escaped and cut.
        written: String,
        /// The largest number it takes.
        max: u32,
    },
    /// A setting that means something only with subscriptions.
    #[error("`{0}` is of no use without `subscriptions`")]
    NoSubscriptions(&'static str),
}

fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

fn token(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'$' | b':' | b'/' | b'=');
    !text.is_empty() && text.bytes().all(fits)
}

/// Checks the subject of a message.
///
/// # Errors
/// [`MessagingError::Subject`].
pub fn check_subject(text: &str) -> Result<(), MessagingError> {
    if text.len() <= MAX_SUBJECT && text.split('.').all(token) {
        return Ok(());
    }
    Err(MessagingError::Subject(shown(text)))
}

/// A subject in which tokens may be left open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether messages of `subject` are meant.
    pub fn matches(&self, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for wanted in self.0.split('.') {
            match (wanted, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (wanted, Some(token)) if wanted == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    /// Whether some subject matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.0.split('.'), other.0.split('.'));
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(one), Some(two)) if one == two || one == "*" || two == "*" => {}
                _ => return false,
            }
        }
    }
}

/// Whether every subject that `narrow` means is meant by `wide` too. Both are subjects or patterns, of a server too,
/// whose tokens may be of any text.
pub fn covers(wide: &str, narrow: &str) -> bool {
    let mut narrow = narrow.split('.');
    for wanted in wide.split('.') {
        match (wanted, narrow.next()) {
            (">", Some(_)) => return true,
            ("*", Some(token)) if token != ">" => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

impl FromStr for Pattern {
    type Err = MessagingError;
    fn from_str(text: &str) -> Result<Self, MessagingError> {
        let mut tokens = text.split('.').peekable();
        let mut good = text.len() <= MAX_SUBJECT;
        while let Some(part) = tokens.next() {
            good &= token(part) || part == "*" || (part == ">" && tokens.peek().is_none());
        }
        if good { Ok(Self(text.to_owned())) } else { Err(MessagingError::Pattern(shown(text))) }
    }
}

impl TryFrom<String> for Pattern {
    type Error = MessagingError;
    fn try_from(text: String) -> Result<Self, MessagingError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The end of the name of [`Group::untried`].
const UNTRIED: &str = "/untried";

/// Who shares messages: each message goes to one member of each group. A group is one app's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Whose.
    pub app: AppName,
    /// `<component>.<label>`, or the `queue-group` of the links: the first has a dot, the second never has.
    pub name: String,
}

impl Group {
    /// Where the node keeps messages of the group that a host of it held and could not have handled, when their broker keeps
    /// none. No link can have a group of that name.
    #[must_use]
    pub fn untried(&self) -> Self {
        Self { app: self.app.clone(), name: format!("{}{UNTRIED}", self.name) }
    }

    /// Whether it is what [`Group::untried`] gives.
    #[must_use]
    pub fn is_untried(&self) -> bool {
        self.name.ends_with(UNTRIED)
    }
}

/// What one link takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Who handles the messages.
    pub component: ComponentName,
    /// The link's label.
    pub label: Label,
    /// With whom it shares them.
    pub group: Group,
    /// Messages of which subjects.
    pub patterns: Vec<Pattern>,
    /// How often a message is tried.
    pub tries: u32,
    /// Messages that one shard handles at once.
    pub in_flight: u32,
}

impl Subscription {
    /// What a link takes; `None` where it takes nothing: the component only sends by it.
    ///
    /// # Errors
    /// What is wrong with its settings, and in which.
    pub fn of(app: &AppName, link: &Link) -> Result<Option<Self>, (&'static str, MessagingError)> {
        Self::read(app, &link.component, &link.label, &link.config)
    }

    fn read(
        app: &AppName,
        component: &ComponentName,
        label: &Label,
        config: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, (&'static str, MessagingError)> {
        let Some(written) = config.get("subscriptions") else {
            return match ["queue-group", "max-tries", "max-in-flight"].into_iter().find(|s| config.contains_key(*s)) {
                Some(setting) => Err((setting, MessagingError::NoSubscriptions(setting))),
                None => Ok(None),
            };
        };
        let patterns: Result<Vec<Pattern>, _> = written.split(',').map(|one| one.trim().parse()).collect();
        let patterns = patterns.map_err(|cause| ("subscriptions", cause))?;
        if patterns.is_empty() || patterns.len() > MAX_PATTERNS {
            return Err(("subscriptions", MessagingError::Count(patterns.len())));
        }
        for (index, one) in patterns.iter().enumerate() {
            if let Some(other) = patterns.iter().take(index).find(|other| other.overlaps(one)) {
                return Err(("subscriptions", MessagingError::Overlap(other.clone(), one.clone())));
            }
        }
        let name = match config.get("queue-group") {
            Some(name) => {
                let name = name.parse::<Label>().map_err(|cause| ("queue-group", MessagingError::Group(cause)))?;
                name.as_str().to_owned()
            }
            None => format!("{component}.{label}"),
        };
        Ok(Some(Self {
            component: component.clone(),
            label: label.clone(),
            group: Group { app: app.clone(), name },
            patterns,
            tries: number(config, "max-tries", DEFAULT_TRIES, MAX_TRIES)?,
            in_flight: number(config, "max-in-flight", DEFAULT_IN_FLIGHT, MAX_IN_FLIGHT)?,
        }))
    }

    /// The subject under which a message is put away that was tried as often as the link allows; `None` for one that
    /// was put away already, which is not put away again, and where the subject would be too long.
    pub fn dead_letter(&self, subject: &str) -> Option<String> {
        if subject.split('.').next() == Some(DEAD_LETTER) {
            return None;
        }
        let dead = format!("{DEAD_LETTER}.{}.{}.{}.{subject}", self.group.app, self.component, self.label);
        check_subject(&dead).ok().map(|()| dead)
    }
}

fn number(
    config: &BTreeMap<String, String>,
    setting: &'static str,
    default: u32,
    max: u32,
) -> Result<u32, (&'static str, MessagingError)> {
    let Some(written) = config.get(setting) else { return Ok(default) };
    let number = written.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| (setting, MessagingError::Number { setting, written: shown(written), max }))
}

/// What the links of an app take that can be read; the rules refuse an app with one that cannot.
pub fn subscriptions(app: &LockedApp) -> impl Iterator<Item = (&Link, Subscription)> {
    let links = app.links.iter().filter(|link| link.contract.to_string() == CONTRACT);
    links.filter_map(|link| Some((link, Subscription::of(&app.name, link).ok().flatten()?)))
}

/// How long a message waits after it failed for the `tries`th time, milliseconds: longer each time, up to a minute.
pub fn pause_ms(tries: u32) -> u64 {
    100_u64.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(60_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn subjects_and_patterns() {
        for good in ["a", "orders.new", "a.b.c", "A-1_x.$SYS:x/y=z", &"a".repeat(255)] {
            assert!(check_subject(good).is_ok() && good.parse::<Pattern>().is_ok(), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\n", "é", "a,b", &"a".repeat(256), "a\0"] {
            assert!(check_subject(bad).is_err() && bad.parse::<Pattern>().is_err(), "{bad}");
        }
        for open in ["*", ">", "a.*", "a.>", "*.b.>"] {
            assert!(check_subject(open).is_err() && open.parse::<Pattern>().is_ok(), "{open}");
        }
        for bad in [">.a", "a*", "a.>b", "**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_match_whole_tokens() {
        for (open, subject, matches) in [
            ("a", "a", true),
            ("a", "a.b", false),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*", "a.b.c", false),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("*.b", "x.b", true),
            ("*.b", "x.c", false),
        ] {
            assert_eq!(pattern(open).matches(subject), matches, "{open} {subject}");
        }
    }

    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        for (wide, narrow, covered) in [
            ("a", "a", true),
            ("a.>", "a.b", true),
            ("a.>", "a.*", true),
            ("a.>", "a.>", true),
            (">", "a.>", true),
            ("a.*", "a.*", true),
            ("a.*", "a.b", true),
            ("a.*", "a.>", false),
            ("a.*", "*.b", false),
            ("a.b", "a.*", false),
            ("a.>", "a", false),
            ("a", "a.b", false),
            ("*.*", "a.b.c", false),
        ] {
            assert_eq!(covers(wide, narrow), covered, "{wide} {narrow}");
        }
    }

    fn read(config: &[(&str, &str)]) -> Result<Option<Subscription>, (&'static str, MessagingError)> {
        let config = config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Subscription::read(&"shop".parse().unwrap(), &"mail".parse().unwrap(), &"default".parse().unwrap(), &config)
    }

    #[test]
    fn settings_are_read_once_and_whole() {
        assert_eq!(read(&[]), Ok(None));
        let one = read(&[("subscriptions", "orders.new, jobs.>")]).unwrap().unwrap();
        assert_eq!(one.patterns, [pattern("orders.new"), pattern("jobs.>")]);
        assert_eq!((one.group.name.as_str(), one.tries, one.in_flight), ("mail.default", 5, 16));
        let one = read(&[("subscriptions", "a"), ("queue-group", "q"), ("max-tries", "1"), ("max-in-flight", "256")]);
        let one = one.unwrap().unwrap();
        assert_eq!((one.group.name.as_str(), one.tries, one.in_flight), ("q", 1, 256));
        for (bad, setting) in [
            (&[("subscriptions", "")][..], "subscriptions"),
            (&[("subscriptions", "a,,b")], "subscriptions"),
            (&[("subscriptions", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q")], "subscriptions"),
            (&[("subscriptions", "a.*,b,*.b")], "subscriptions"),
            (&[("subscriptions", "a.b,a.>")], "subscriptions"),
            (&[("queue-group", "q")], "queue-group"),
            (&[("subscriptions", "a"), ("queue-group", "a.b")], "queue-group"),
            (&[("subscriptions", "a"), ("max-tries", "0")], "max-tries"),
            (&[("subscriptions", "a"), ("max-in-flight", "257")], "max-in-flight"),
        ] {
            assert_eq!(read(bad).unwrap_err().0, setting);
        }
    }

    #[test]
    fn a_dead_letter_is_not_put_away_again() {
        let one = read(&[("subscriptions", ">")]).unwrap().unwrap();
        let dead = one.dead_letter("orders.new").unwrap();
        assert_eq!(dead, "dead-letter.shop.mail.default.orders.new");
        assert_eq!(one.dead_letter(&dead), None);
        assert_eq!(one.dead_letter(&"a".repeat(255)), None);
    }

    #[test]
    fn pauses_grow_to_a_minute() {
        assert_eq!([1, 2, 3].map(pause_ms), [100, 200, 400]);
        assert_eq!([20, u32::MAX].map(pause_ms), [60_000, 60_000]);
    }

    proptest! {
        #[test]
        fn a_subject_matches_itself_and_everything(tokens in prop::collection::vec("[a-z0-9_-]{1,8}", 1..6)) {
            let subject = tokens.join(".");
            prop_assert!(pattern(&subject).matches(&subject));
            prop_assert!(pattern(">").matches(&subject));
            let stars = vec!["*"; tokens.len()].join(".");
            prop_assert!(pattern(&stars).matches(&subject));
        }
    }
}
