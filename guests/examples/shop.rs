//! Calls `acme:pricing/quote` of another component, as the path commands: `/next?n=&times=`, `/price?lines=pear:2,plum:1`,
//! `/basket?lines=`, `/echo?bytes=`, `/hold`, `/keep`, `/state`, `/act?what=`.
mod pricing {
    wit_bindgen::generate!({
        path: "../wit/pricing",
        inline: "
            package sidereal:shop;
            world shop {
                import acme:pricing/quote@1.0.0;
            }
        ",
        world: "sidereal:shop/shop",
        generate_all,
    });
}

use std::cell::RefCell;

use guests::{Guest, IncomingRequest, ResponseOutparam};
use pricing::acme::pricing::quote::{self, Basket, Line};

thread_local! {
    static KEPT: RefCell<Option<Basket>> = const { RefCell::new(None) };
}

struct Shop;

fn lines(text: &str) -> Vec<Line> {
    let parse = |part: &str| {
        let (item, count) = part.split_once(':').unwrap_or((part, "1"));
        Line {
            item: item.to_owned(),
            count: count.parse().unwrap_or(0),
            note: (item == "plum").then(|| "ripe".to_owned()),
        }
    };
    text.split(',').filter(|part| !part.is_empty()).map(parse).collect()
}

/// Several baskets at once: lent, copied, merged, paid (given away) and dropped.
fn baskets(text: &str) -> String {
    let one = Basket::new("ada");
    for line in lines(text) {
        if let Err(refusal) = one.add(&line) {
            return format!("{refusal:?}");
        }
    }
    let two = Basket::copy(&one);
    two.merge(&one);
    let (first, second) = (one.total(), two.total());
    drop(one);
    let (who, paid) = quote::pay(two);
    format!("{first} {second} {who} {paid}")
}

impl Guest for Shop {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let (path, query) = guests::target(&request);
        let text = |name: &str| guests::param(&query, name).unwrap_or_default();
        let answer = match path.as_str() {
            "/next" => {
                let times = guests::number(&query, "times", 1);
                (0..times).fold(guests::number(&query, "n", 0) as u32, |n, _| quote::next(n)).to_string()
            }
            "/price" => format!("{:?}", quote::price(&lines(&text("lines")))),
            "/basket" => baskets(&text("lines")),
            "/echo" => {
                let bytes: Vec<u8> = (0..guests::number(&query, "bytes", 10)).map(|n| n as u8).collect();
                (quote::echo(&bytes) == bytes).to_string()
            }
            // One that lives on when the request has ended, in the instance's memory.
            "/keep" => {
                let basket = Basket::new("eve");
                let _ = basket.add(&Line { item: "pear".to_owned(), count: 1, note: None });
                let total = basket.total();
                KEPT.with(|kept| *kept.borrow_mut() = Some(basket));
                total.to_string()
            }
            "/kept" => KEPT.with(|kept| match &*kept.borrow() {
                Some(basket) => {
                    let _ = basket.add(&Line { item: "pear".to_owned(), count: 1, note: None });
                    basket.total().to_string()
                }
                None => "none".to_owned(),
            }),
            "/state" => format!("{:?}", quote::state()),
            "/act" => quote::act(&text("what")),
            _ => return guests::reply(out, 404, "?"),
        };
        guests::reply(out, 200, &answer);
    }
}

guests::export!(Shop);
