//! One request of a client on its way through a host: sent on a line or on a connection, and its answer brought back as it
//! comes.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use api::data_line::CLAIM_HEADER;
use http::StatusCode;
use tokio::time::Instant;

use super::super::answer::Answer;
use super::super::bad::BadRequest;
use super::super::body::Framing;
use super::super::gateway::{Attempt, Lease};
use super::super::head::HeadScan;
use super::super::line::{Told, Waiting, is_claim};
use super::super::pump::{self, BodyEnd, ResponseEnd};
use super::super::response::{ResponseHead, find_end};
use super::super::shard::InFlight;
use super::super::wire::{send, write_all};
use super::{Call, Connection, Failed};

impl Connection<'_, '_> {
    /// Waits for the answer to a request on a line and sends it to the client; whether its connection may be used again.
    pub(super) async fn on_line(
        &mut self,
        mut waiting: Waiting,
        in_flight: InFlight,
        call: &Call,
        rerouted: bool,
        until: Instant,
    ) -> Result<bool, Failed> {
        let told = {
            let mut gone = pin!(pump::watch(self.reader, &mut self.buffer));
            tokio::select! {
                biased;
                told = &mut waiting => told,
                () = &mut gone => return Err(Failed::Aborted),
                () = self.timer.until(until) => return Err(Failed::Answer(Answer::timed_out())),
            }
        };
        let answer = match told {
            Told::Answer(answer) => answer,
            Told::Claim(claim) if is_claim(&claim) => {
                let ended = self.claim(&claim, in_flight, call, until).await;
                // Otherwise the host learns that nobody will ask any more.
                if ended.is_ok() {
                    waiting.fetched();
                }
                return ended;
            }
            Told::Lost { sent } if !sent || call.idempotent && !call.framing.has_body() => return Err(Failed::Again),
            Told::Claim(_) | Told::Lost { .. } => return Err(Failed::Answer(Answer::host_gone())),
        };
        drop(in_flight);
        let malformed = |_| Failed::Answer(Answer::host_gone());
        let length = find_end(&mut HeadScan::default(), &answer).map_err(malformed)?.unwrap_or_default();
        let (head, body) = answer.split_at_checked(length).unwrap_or_default();
        let head = ResponseHead::parse(head, call.to_head).map_err(malformed)?;
        let whole = match head.framing {
            Framing::None => body.is_empty(),
            Framing::Length(length) => length == body.len() as u64,
            Framing::Chunked => false,
        };
        if !whole || head.status.is_informational() {
            return Err(Failed::Answer(Answer::host_gone()));
        }
        if !rerouted && head.is_stale() {
            return Err(Failed::Stale);
        }
        let keep = call.keep_alive && !self.worker.draining.is_cancelled();
        self.out.clear();
        head.write(&mut self.out, call.is_11, !keep);
        self.out.extend_from_slice(body);
        let status = head.status;
        drop(answer);
        let written = tokio::select! {
            biased;
            written = write_all(self.writer, &self.out, self.worker.config.body_timeout) => written.is_ok(),
            () = self.timer.until(until) => false,
        };
        if !written {
            return Err(Failed::Aborted);
        }
        self.answered = Some(status);
        Ok(keep)
    }

    /// The answer to a request on a line is there but not whole: it comes over a connection of its own. The request was
    /// executed, so nothing is asked for twice but the answer.
    async fn claim(&mut self, claim: &[u8], in_flight: InFlight, call: &Call, until: Instant) -> Result<bool, Failed> {
        let gone = || Failed::Answer(Answer::host_gone());
        let mut attempt = Attempt::default();
        self.request.clear();
        for piece in [b"GET / HTTP/1.1\r\n".as_slice(), CLAIM_HEADER.as_bytes(), b": ", claim, b"\r\n\r\n"] {
            self.request.extend_from_slice(piece);
        }
        let shard = in_flight.shard().clone();
        let mut in_flight = Some(in_flight);
        loop {
            let counted = in_flight.take().unwrap_or_else(|| shard.enter());
            let lease = self.worker.gateway.connect(counted, &mut attempt).await.ok_or_else(gone)?;
            match self.exchange(lease, call, true, true, until).await {
                Err(Failed::Again) if !attempt.fresh => attempt.fresh = true,
                Err(Failed::Again | Failed::Stale) => return Err(gone()),
                ended => return ended,
            }
        }
    }

    /// Sends the request on a connection and the response back; whether the client's connection may be used again.
    pub(super) async fn exchange(
        &mut self,
        mut lease: Lease,
        call: &Call,
        whole: bool,
        rerouted: bool,
        until: Instant,
    ) -> Result<bool, Failed> {
        let Self { worker, reader, writer, buffer, out, request, timer, answered, .. } = self;
        let stall = worker.config.body_timeout;
        let pooled = lease.pooled;
        let (mut from_host, mut to_host) = lease.upstream.stream.split();
        let host_buffer = &mut lease.upstream.buffer;
        // A host that takes nothing keeps neither the request beyond its time nor the place of a client that has left.
        let sent = tokio::select! {
            biased;
            sent = send(&mut to_host, request) => sent,
            () = pump::watch(*reader, buffer) => return Err(Failed::Aborted),
            () = timer.until(until) => return Err(Failed::Answer(Answer::timed_out())),
        };
        match sent {
            Ok(()) => {}
            Err(0) if pooled => return Err(Failed::Again),
            // The host may have answered before it stopped reading; otherwise the read below says what happened.
            Err(_) => {}
        }
        if call.expects_continue && !whole {
            write_all(*writer, b"HTTP/1.1 100 Continue\r\n\r\n", stall).await.map_err(|_| Failed::Aborted)?;
        }

        let all_sent = AtomicBool::new(whole);
        let (close, keep, status) = {
            let mut inbound = pin!(async {
                if !whole {
                    let decoder = call.framing.decoder();
                    let limit = call.target.request_body;
                    match pump::request_body(*reader, buffer, decoder, &mut to_host, limit, stall).await {
                        Ok(()) => all_sent.store(true, Ordering::Relaxed),
                        Err(BodyEnd::HostGone) => std::future::pending().await,
                        Err(end) => return end,
                    }
                }
                pump::watch(*reader, buffer).await;
                BodyEnd::ClientGone
            });

            let mut interim = 0;
            let (close, keep, status, decoder, chunks) = loop {
                let length = tokio::select! {
                    biased;
                    head = pump::response_head(&mut from_host, host_buffer) => match head {
                        Ok(length) => length,
                        Err(ResponseEnd::Nothing) if pooled && call.idempotent && !call.framing.has_body() => {
                            return Err(Failed::Again);
                        }
                        Err(_) => return Err(Failed::Answer(Answer::host_gone())),
                    },
                    end = &mut inbound => return Err(match end {
                        BodyEnd::TooLarge => Failed::Answer(Answer::too_large(call.target.request_body)),
                        BodyEnd::Stalled => Failed::Answer(Answer::client_timeout()),
                        BodyEnd::Malformed => Failed::Answer(Answer::bad(BadRequest::Framing)),
                        BodyEnd::ClientGone | BodyEnd::HostGone => Failed::Aborted,
                    }),
                    () = timer.until(until) => return Err(Failed::Answer(Answer::timed_out())),
                };
                let bytes = host_buffer.data().get(..length).unwrap_or_default();
                let malformed = |_| Failed::Answer(Answer::host_gone());
                let head = ResponseHead::parse(bytes, call.to_head).map_err(malformed)?;
                if head.status.is_informational() {
                    interim += 1;
                    if head.status == StatusCode::SWITCHING_PROTOCOLS || interim > pump::MAX_INTERIM {
                        return Err(Failed::Answer(Answer::host_gone()));
                    }
                    host_buffer.consume(length);
                    continue;
                }
                if whole && !rerouted && head.is_stale() {
                    return Err(Failed::Stale);
                }
                let keep = call.keep_alive && all_sent.load(Ordering::Relaxed) && !worker.draining.is_cancelled();
                let chunks = call.is_11 && head.framing == Framing::Chunked;
                out.clear();
                head.write(out, call.is_11, !keep);
                let decoder = head.framing.decoder();
                let (close, status) = (head.close, head.status);
                host_buffer.consume(length);
                break (close, keep, status, decoder, chunks);
            };
            tokio::select! {
                biased;
                end = pump::response_body(&mut from_host, host_buffer, decoder, chunks, *writer, out, stall) => {
                    end.map_err(|_| Failed::Aborted)?;
                },
                // Half a response is on its way: all that can be said now is said by ending the connection.
                _ = &mut inbound => return Err(Failed::Aborted),
                () = timer.until(until) => return Err(Failed::Aborted),
            }
            (close, keep, status)
        };
        *answered = Some(status);
        if !close && all_sent.load(Ordering::Relaxed) {
            worker.gateway.give_back(lease);
        }
        Ok(keep)
    }
}
