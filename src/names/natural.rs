//! The order of names with numbers in them.

use std::cmp::Ordering;

/// Compares names so that numbers in them count as numbers: `layers.2` before `layers.10`.
pub fn natural_cmp(a: &str, b: &str) -> Ordering {
    let digits =
        |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    // Skip the common prefix, except for the digits at its end: they belong to a number that continues.
    let same = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let boundary = |at: &usize| a.is_char_boundary(*at) && b.is_char_boundary(*at);
    let digit = |at: usize| a.as_bytes()[at].is_ascii_digit();
    let start = (0..=same).rev().find(|at| boundary(at) && (*at == 0 || !digit(*at - 1)));
    let (mut x, mut y) = (&a[start.unwrap_or(0)..], &b[start.unwrap_or(0)..]);
    while !x.is_empty() && !y.is_empty() {
        let (m, n) = (digits(x), digits(y));
        if m > 0 && n > 0 {
            let (p, q) = (x[..m].trim_start_matches('0'), y[..n].trim_start_matches('0'));
            let order = p.len().cmp(&q.len()).then_with(|| p.cmp(q));
            if order != Ordering::Equal {
                return order;
            }
            (x, y) = (&x[m..], &y[n..]);
        } else {
            let (c, d) = (x.chars().next(), y.chars().next());
            if c != d {
                return c.cmp(&d);
            }
            let len = c.map_or(0, char::len_utf8);
            (x, y) = (&x[len..], &y[len..]);
        }
    }
    // Equal except for leading zeros: any fixed order will do.
    x.len().cmp(&y.len()).then_with(|| a.cmp(b))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Natural(pub(crate) String);

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        natural_cmp(&self.0, &other.0)
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
