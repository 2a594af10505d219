//! A component that serves no HTTP.
wit_bindgen::generate!({
    inline: "
        package acme:tool@1.0.0;
        interface sums {
            add: func(a: u32, b: u32) -> u32;
        }
        world guest {
            export sums;
        }
    ",
});

struct Tool;

impl exports::acme::tool::sums::Guest for Tool {
    fn add(a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
}

export!(Tool);
