//! What becomes of a delivery, decided in one place for every backend: done, again later, put away, or given back.

use std::time::Duration;

use model::messaging::{Subscription, pause_ms};

use super::Delivers;

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The handler returned ok: the message is never delivered again.
    Done,
    /// The handler failed: deliver it again after this time.
    Again(Duration),
    /// The handler failed as often as the link allows: send the message to this subject, if there is one, and never
    /// deliver it again.
    PutAway {
        /// Where to.
        to: Option<String>,
        /// Why, for who looks at it there.
        why: String,
    },
    /// Nobody has tried: deliver it to somebody else at once, and do not count it as a try.
    GivenBack,
}

/// What becomes of a message whose `tries`th try has failed. `random` spreads those that failed together.
pub fn after_failure(
    subscription: &Subscription,
    delivers: Delivers,
    subject: &str,
    tries: u32,
    why: &str,
    random: u64,
) -> Outcome {
    if tries >= subscription.tries || delivers == Delivers::AtMostOnce {
        return Outcome::PutAway { to: subscription.dead_letter(subject), why: why.to_owned() };
    }
    let full = pause_ms(tries);
    Outcome::Again(Duration::from_millis(full / 2 + random % (full / 2 + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_come_again_until_they_are_put_away() {
        let app: model::LockedApp = serde_json::from_str(
            r#"{"name":"a","components":{},"links":[{"component":"c","contract":"wasmcloud:messaging",
                "label":"default","provider":"local","config":{"subscriptions":"x","max-tries":"3"}}]}"#,
        )
        .unwrap();
        let (_, subscription) = model::messaging::subscriptions(&app).next().unwrap();
        let after = |tries| after_failure(&subscription, Delivers::AtLeastOnce, "x", tries, "no", u64::MAX);
        for (tries, at_most) in [(1, 100), (2, 200)] {
            let Outcome::Again(pause) = after(tries) else { panic!("{tries}") };
            assert!((at_most / 2..=at_most).contains(&(pause.as_millis() as u64)), "{pause:?}");
        }
        let away = |to: Option<&str>| Outcome::PutAway { to: to.map(str::to_owned), why: "no".to_owned() };
        assert_eq!(after(3), away(Some("dead-letter.a.c.default.x")));
        assert_eq!(after_failure(&subscription, Delivers::AtMostOnce, "dead-letter.x", 1, "no", 0), away(None));
    }
}
