//! Drives one call: accounts its CPU time, ends it at its wall time, and settles the meter however it ends.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Sleep;

use crate::call::Call;
use crate::fault::Fault;
use crate::trace::Entered;
use crate::workload::Workload;

/// Settles the meter when the call ends, also when its future is dropped half-way.
struct Account<'a>(&'a Call);

impl Drop for Account<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

/// Runs a guest to its end within the limits of its workload. `guest` makes it where it stays: a future that is handed over
/// has room for it twice, and is copied whole.
pub(crate) async fn drive<T, F: Future<Output = Result<T, Fault>>>(
    work: Arc<Workload>,
    call: Arc<Call>,
    guest: impl FnOnce() -> F,
) -> Result<T, Fault> {
    work.meter().begin();
    let _account = Account(&call);
    let mut guest = pin!(guest());
    let ticker = &work.linked().set.ticker;
    // Made when the guest first waits; most calls end without it.
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    let result = poll_fn(|cx| {
        let polled = {
            let _running = ticker.running();
            let _traced = call.trace().map(Entered::new);
            let before = call.poll_begins();
            let polled = guest.as_mut().poll(cx);
            ticker.ran(call.poll_ends(before));
            polled
        };
        if polled.is_ready() {
            return polled;
        }
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(call.deadline().into())));
        timer.as_mut().poll(cx).map(|()| Err(call.late()))
    })
    .await;
    if let Err(fault) = &result {
        // Before the guest goes away with this frame.
        call.fail(fault);
    }
    result
}

/// Polls a call until it has ended (`Some`) or its guest has answered and goes on (`None`).
pub(crate) async fn until_head<T>(
    task: &mut Pin<Box<impl Future<Output = Result<T, Fault>>>>,
    call: &Call,
) -> Option<Result<T, Fault>> {
    poll_fn(|cx| match task.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if call.has_head() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
