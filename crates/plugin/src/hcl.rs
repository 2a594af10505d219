//! Builds the schema of a configuration block. The agent checks the block by it, and refuses what it does not name. What it
//! then sends is read by [`crate::config`].

use std::fmt::Write as _;

use crate::contracts::hashicorp::nomad::plugins::shared::hclspec::{
    Attr, Block, BlockAttrs, BlockList, BlockMap, Default, Literal, Object, Spec, spec,
};

/// The fields of a block, by name.
#[derive(Debug, Clone, std::default::Default)]
pub struct Fields(Object);

fn of(block: spec::Block) -> Spec {
    Spec { block: Some(block) }
}

impl Fields {
    /// None.
    pub fn new() -> Self {
        std::default::Default::default()
    }

    fn with(mut self, name: &str, block: spec::Block) -> Self {
        self.0.attributes.insert(name.to_owned(), of(block));
        self
    }

    fn attr(name: &str, kind: &str, required: bool) -> spec::Block {
        spec::Block::Attr(Attr { name: name.to_owned(), r#type: kind.to_owned(), required })
    }

    /// A field with what an absent one means, as HCL writes it.
    fn with_default(self, name: &str, kind: &str, default: String) -> Self {
        let primary = Box::new(of(Self::attr(name, kind, false)));
        let default = Box::new(of(spec::Block::Literal(Literal { value: default })));
        self.with(name, spec::Block::Default(Box::new(Default { primary: Some(primary), default: Some(default) })))
    }

    /// A text that must be there.
    #[must_use]
    pub fn text(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "string", true))
    }

    /// A text that may be there.
    #[must_use]
    pub fn maybe_text(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "string", false))
    }

    /// A text, with what an absent one means.
    #[must_use]
    pub fn text_or(self, name: &str, default: &str) -> Self {
        self.with_default(name, "string", quoted(default))
    }

    /// Texts, in order.
    #[must_use]
    pub fn texts(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(string)", false))
    }

    /// Texts by name. Jobs hand such maps over as a list of maps, so the type has to be one.
    #[must_use]
    pub fn text_map(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(map(string))", false))
    }

    /// A number that must be there.
    #[must_use]
    pub fn number(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "number", true))
    }

    /// A number that may be there.
    #[must_use]
    pub fn maybe_number(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "number", false))
    }

    /// A number, with what an absent one means.
    #[must_use]
    pub fn number_or(self, name: &str, default: i64) -> Self {
        self.with_default(name, "number", default.to_string())
    }

    /// Numbers, in order.
    #[must_use]
    pub fn numbers(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(number)", false))
    }

    /// Numbers by name; see [`Fields::text_map`].
    #[must_use]
    pub fn number_map(self, name: &str) -> Self {
        self.with(name, Self::attr(name, "list(map(number))", false))
    }

    /// Yes or no, with what an absent one means.
    #[must_use]
    pub fn flag(self, name: &str, default: bool) -> Self {
        self.with_default(name, "bool", default.to_string())
    }

    /// A nested block, at most once.
    #[must_use]
    pub fn block(self, name: &str, fields: Fields) -> Self {
        let nested = Some(Box::new(fields.spec()));
        self.with(name, spec::Block::BlockValue(Box::new(Block { name: name.to_owned(), required: false, nested })))
    }

    /// A nested block, at most once, whose fields have the names that the job gives them, and are texts.
    #[must_use]
    pub fn text_block(self, name: &str) -> Self {
        let (name_of, kind) = (name.to_owned(), "string".to_owned());
        self.with(name, spec::Block::BlockAttrs(BlockAttrs { name: name_of, r#type: kind, required: false }))
    }

    /// Nested blocks that carry a label each: a map from label to block.
    #[must_use]
    pub fn labelled(self, name: &str, label: &str, fields: Fields) -> Self {
        let (nested, labels) = (Some(Box::new(fields.spec())), vec![label.to_owned()]);
        self.with(name, spec::Block::BlockMap(Box::new(BlockMap { name: name.to_owned(), labels, nested })))
    }

    /// Nested blocks, any number.
    #[must_use]
    pub fn blocks(self, name: &str, fields: Fields) -> Self {
        let nested = Some(Box::new(fields.spec()));
        let list = BlockList { name: name.to_owned(), min_items: 0, max_items: 0, nested };
        self.with(name, spec::Block::BlockList(Box::new(list)))
    }

    /// The schema.
    pub fn spec(self) -> Spec {
        of(spec::Block::Object(self.0))
    }
}

/// A text as an HCL expression that stands for just that text: nothing in it begins a template.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '$' | '%' if rest.peek() == Some(&'{') => quoted.extend([next, next]),
            control if control.is_control() => drop(write!(quoted, "\\u{:04x}", u32::from(control))),
            plain => quoted.push(plain),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_the_text_itself_and_no_template() {
        assert_eq!(quoted("a \"b\" \\ ${c} %{d} $e"), r#""a \"b\" \\ $${c} %%{d} $e""#);
        assert_eq!(quoted("a\n\u{1}ä"), "\"a\\n\\u0001ä\"");
    }
}
