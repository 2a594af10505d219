//! Row 12: tasks that only ever wake one another.
use crate::{Answer, Request, reply, wasi::clocks::monotonic_clock};

pub async fn run(_: Request) -> Answer {
    for _ in 0..16 {
        wit_bindgen::spawn_local(async {
            loop {
                monotonic_clock::wait_for(0).await;
            }
        });
    }
    loop {
        monotonic_clock::wait_for(0).await;
        if monotonic_clock::now() == u64::MAX {
            return reply("never".to_owned());
        }
    }
}
