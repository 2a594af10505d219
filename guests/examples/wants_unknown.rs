//! Imports an interface nobody offers.
mod unknown {
    wit_bindgen::generate!({
        inline: "
            package acme:unknown@1.0.0;
            interface thing {
                touch: func() -> u32;
            }
            world wants {
                import thing;
            }
        ",
    });
}

use guests::{Guest, IncomingRequest, ResponseOutparam};

struct Wants;

impl Guest for Wants {
    fn handle(_: IncomingRequest, out: ResponseOutparam) {
        guests::reply(out, 200, &unknown::acme::unknown::thing::touch().to_string());
    }
}

guests::export!(Wants);
