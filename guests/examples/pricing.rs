//! Exports `acme:pricing/quote`: answers calls of other components, and does what a failing one does.
mod bindings {
    wit_bindgen::generate!({
        path: ["../wit/p2", "../wit/config", "../wit/pricing"],
        inline: "
            package sidereal:pricing;
            world guest {
                import wasi:cli/stdout@0.2.12;
                import wasi:clocks/monotonic-clock@0.2.12;
                import wasi:config/store@0.2.0-rc.1;
                export acme:pricing/quote@1.0.0;
            }
        ",
        world: "sidereal:pricing/guest",
        generate_all,
    });
}

use std::cell::{Cell, RefCell};

use bindings::exports::acme::pricing::quote::{Basket, BasketBorrow, Guest, GuestBasket, Line, Refusal};
use bindings::wasi;

thread_local! {
    static BASKETS: Cell<u32> = const { Cell::new(0) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

struct Pricing;

struct Filled {
    customer: String,
    lines: RefCell<Vec<Line>>,
}

impl Filled {
    fn sum(&self) -> u64 {
        price(&self.lines.borrow()).unwrap_or(0)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        BASKETS.set(BASKETS.get() - 1);
    }
}

fn price(lines: &[Line]) -> Result<u64, Refusal> {
    lines.iter().try_fold(0, |sum, line| match line.item.as_str() {
        "pear" => Ok(sum + 3 * u64::from(line.count)),
        "plum" => Ok(sum + 5 * u64::from(line.count)),
        "fig" => Err(Refusal::SoldOut),
        other => Err(Refusal::Unknown(other.to_owned())),
    })
}

fn called() {
    CALLS.set(CALLS.get() + 1);
}

impl GuestBasket for Filled {
    fn new(customer: String) -> Self {
        called();
        BASKETS.set(BASKETS.get() + 1);
        Self { customer, lines: RefCell::default() }
    }

    fn add(&self, line: Line) -> Result<(), Refusal> {
        price(std::slice::from_ref(&line))?;
        self.lines.borrow_mut().push(line);
        Ok(())
    }

    fn total(&self) -> u64 {
        self.sum()
    }

    fn merge(&self, other: BasketBorrow<'_>) {
        let more = other.get::<Filled>().lines.borrow().clone();
        self.lines.borrow_mut().extend(more);
    }

    fn copy(of: BasketBorrow<'_>) -> Basket {
        let of = of.get::<Filled>();
        BASKETS.set(BASKETS.get() + 1);
        Basket::new(Filled { customer: of.customer.clone(), lines: RefCell::new(of.lines.borrow().clone()) })
    }
}

impl Guest for Pricing {
    type Basket = Filled;

    fn next(n: u32) -> u32 {
        called();
        n + 1
    }

    fn price(lines: Vec<Line>) -> Result<u64, Refusal> {
        called();
        price(&lines)
    }

    fn echo(bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn pay(basket: Basket) -> (String, u64) {
        let basket = basket.into_inner::<Filled>();
        (basket.customer.clone(), basket.sum())
    }

    fn state() -> (u32, u32) {
        (BASKETS.get(), CALLS.get())
    }

    fn act(what: String) -> String {
        called();
        match what.split_once(' ').unwrap_or((&what, "")) {
            ("trap", _) => core::arch::wasm32::unreachable(),
            ("spin", _) => loop {
                std::hint::black_box(());
            },
            ("grow", _) => {
                let all: Vec<u8> = vec![1; 1 << 30];
                all.len().to_string()
            }
            ("wait", ms) => {
                let ns = ms.parse::<u64>().unwrap_or(60_000) * 1_000_000;
                wasi::clocks::monotonic_clock::subscribe_duration(ns).block();
                "waited".to_owned()
            }
            ("log", text) => {
                let out = wasi::cli::stdout::get_stdout();
                let _ = out.blocking_write_and_flush(format!("{text}\n").as_bytes());
                "logged".to_owned()
            }
            ("get", key) => format!("{:?}", wasi::config::store::get(key)),
            _ => "?".to_owned(),
        }
    }
}

bindings::export!(Pricing with_types_in bindings);
