//! A call of a component that goes on between the reads or writes of whoever has its other end. Nobody else polls it, so that
//! their pauses are its own; but it holds a place of the component, and it ends at the component's `wall` also in a pause.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::task::JoinHandle;

use super::Said;
use crate::exported::Failed;

/// A call as it is made.
pub(super) type Going<T> = BoxFuture<'static, Result<Said<T>, Failed>>;

/// How soon one that has not ended is looked after again.
const AGAIN: Duration = Duration::from_millis(100);

/// A call that goes on while chunks pass. It ends when this is dropped.
pub(super) struct Lent<T> {
    state: Arc<Mutex<State<T>>>,
    timer: Option<JoinHandle<()>>,
}

struct State<T> {
    call: Option<Going<T>>,
    /// What it ended with in a pause.
    ended: Option<Result<Said<T>, Failed>>,
    /// Who waits for it.
    waits: Option<Waker>,
}

fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> Lent<T> {
    pub(super) fn new(call: Going<T>) -> Self {
        Self { state: Arc::new(Mutex::new(State { call: Some(call), ended: None, waits: None })), timer: None }
    }

    /// It began a moment ago and has this `wall`: from now on it ends in time, whoever polls it.
    pub(super) fn within(&mut self, wall: Duration) {
        let state = Arc::downgrade(&self.state);
        self.timer = Some(tokio::spawn(async move {
            tokio::time::sleep(wall).await;
            while state.upgrade().is_some_and(|state| !overdue(&state)) {
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }
}

/// Polls a call whose time is over, so that it ends with the reason and not merely goes away. Whether that was all.
fn overdue<T>(state: &Mutex<State<T>>) -> bool {
    let mut state = match state.try_lock() {
        Ok(state) => state,
        Err(TryLockError::Poisoned(state)) => state.into_inner(),
        // Somebody polls it: it ends by itself.
        Err(TryLockError::WouldBlock) => return false,
    };
    if state.call.is_none() {
        return true;
    }
    let ended = match state.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(ended) => Some(ended),
        Poll::Pending => None,
    };
    // It knows of nobody but us any more.
    if let Some(waits) = state.waits.take() {
        waits.wake();
    }
    state.ended = ended;
    state.call.is_none()
}

impl<T> State<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Said<T>, Failed>> {
        if let Some(ended) = self.ended.take() {
            return Poll::Ready(ended);
        }
        let Some(call) = &mut self.call else {
            return Poll::Ready(Err(Failed::Unavailable("the call of the component behind the link has ended".into())));
        };
        let ended = ready!(call.as_mut().poll(cx));
        self.call = None;
        Poll::Ready(ended)
    }
}

impl<T> Future for Lent<T> {
    type Output = Result<Said<T>, Failed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = lock(&self.state);
        let polled = state.poll(cx);
        state.waits = polled.is_pending().then(|| cx.waker().clone());
        polled
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
        let call = lock(&self.state).call.take();
        // Its instance ends here, and with it what that was writing.
        drop(call);
    }
}
