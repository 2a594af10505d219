//! A queue that mostly has one element, as the pieces of an answer do: that one needs no memory of its own.

use std::collections::VecDeque;

/// What was put in, the first first.
#[derive(Debug, Clone)]
pub struct Few<T> {
    first: Option<T>,
    more: VecDeque<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: None, more: VecDeque::new() }
    }
}

impl<T> Few<T> {
    /// Puts one behind the others.
    pub fn push(&mut self, one: T) {
        if self.is_empty() {
            self.first = Some(one);
        } else {
            self.more.push_back(one);
        }
    }

    /// Takes the first one out.
    pub fn pop(&mut self) -> Option<T> {
        self.first.take().or_else(|| self.more.pop_front())
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        self.first.iter().chain(&self.more)
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        let mut all = all.into_iter();
        Self { first: all.next(), more: all.collect() }
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::collections::vec_deque::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_goes_first() {
        let mut few = Few::default();
        for n in 0..3 {
            few.push(n);
        }
        assert_eq!((few.pop(), few.iter().copied().collect::<Vec<_>>()), (Some(0), vec![1, 2]));
        few.push(3);
        assert_eq!(few.clone().into_iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!([few.pop(), few.pop(), few.pop(), few.pop()], [Some(1), Some(2), Some(3), None]);
        few.push(4);
        assert!(few.first.is_some() && few.more.is_empty() && !few.is_empty());
        let again: Few<_> = few.into_iter().chain([5]).collect();
        assert_eq!(again.iter().collect::<Vec<_>>(), [&4, &5]);
    }
}
