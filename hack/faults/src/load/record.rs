//! Records: each follows from the seed, its author and its number, so that no content has to be stored.
//!
//! A code names a record in eight bytes: author, number, and the variant of its content.

use serde_json::Value;

use crate::decimal;

/// Authors that send one record after the other; their order must be kept.
pub(crate) const CLIENTS: u16 = 4;
/// The author whose records are sent five times at once.
pub(crate) const HERD: u16 = CLIENTS;
/// The author whose records all have the same key; it sends one after the other, too.
pub(crate) const HOT: u16 = CLIENTS + 1;
/// The author whose records are sent in one large batch, by a fault.
pub(crate) const LARGE: u16 = CLIENTS + 2;
/// The author whose ids are sent to many destinations at once, by a fault: a variant is a destination.
pub(crate) const COLLIDE: u16 = CLIENTS + 3;
/// The author whose dead letters are replayed and discarded at once, by a fault.
pub(crate) const DECIDED: u16 = CLIENTS + 4;
/// The author whose records are reversed: each is followed by [`REVERSALS`] reversals, sent at once, of which not all fit.
pub(crate) const REVERSED: u16 = CLIENTS + 5;
/// How many authors there are.
pub(crate) const AUTHORS: u16 = CLIENTS + 6;
/// Reversals of each record of [`REVERSED`].
pub(crate) const REVERSALS: u32 = 3;
/// A destination with many records.
const HOT_DESTINATION: &str = "hot";
/// Other destinations.
const DESTINATIONS: u64 = 61;
/// Destinations of records that become dead letters: they get only negative records.
const POISONED: &str = "poison-";
/// The value of a negative record to a destination without a balance.
const POISON: &str = "999999999999999";
/// The manifest's policy.minimumTotal.
pub(crate) const MINIMUM_TOTAL: &str = "0";
/// The manifest's threshold.
pub(crate) const THRESHOLD: &str = "200";
/// The manifest's threshold for USD.
pub(crate) const THRESHOLD_USD: &str = "150.5";

/// The reason of each reversal.
const REASON: &str = "the campaign reverses it";

/// A threshold of the manifest on totals.
#[derive(Debug)]
pub(crate) struct TotalThreshold {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) per: &'static str,
    pub(crate) is_above: bool,
    pub(crate) bound: &'static str,
    pub(crate) every: &'static str,
}

/// The manifest's thresholds on totals, in its order.
pub(crate) const TOTAL_THRESHOLDS: [TotalThreshold; 3] = [
    TotalThreshold { name: "key", unit: "EUR", per: "Key", is_above: true, bound: "500", every: "250.5" },
    TotalThreshold { name: "all", unit: "EUR", per: "Destination", is_above: true, bound: "0", every: "1000" },
    TotalThreshold { name: "low", unit: "USD", per: "Destination", is_above: false, bound: "300", every: "100" },
];

/// Variant of a record whose value differs.
pub(crate) const OTHER_VALUE: u8 = 1;
/// Variant of a record whose destination differs, mostly.
pub(crate) const ELSEWHERE: u8 = 2;

/// Most variants that a record has: destinations of [`COLLIDE`].
pub(crate) const VARIANTS: usize = 16;

/// A record, or a variant of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Code(u64);

impl Code {
    /// No record.
    pub(crate) const NONE: Self = Self(u64::MAX);

    /// The n-th record of an author, without a variant.
    pub(crate) fn new(author: u16, n: u32) -> Self {
        Self(u64::from(author) << 32 | u64::from(n))
    }

    /// The same id with other content; 0 is the record itself.
    pub(crate) fn with_variant(self, variant: u8) -> Self {
        Self(self.0 & 0xffff_ffff_ffff | u64::from(variant) << 48)
    }

    /// Its author.
    pub(crate) fn author(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Its number.
    pub(crate) fn n(self) -> u32 {
        self.0 as u32
    }

    /// Its variant.
    pub(crate) fn variant(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// The record with each of its contents.
    pub(crate) fn variants(self) -> impl Iterator<Item = Self> {
        let variants = if self.author() == COLLIDE { VARIANTS as u8 } else { ELSEWHERE + 1 };
        (0..variants).map(move |variant| self.with_variant(variant))
    }

    /// The record that a reversal takes back; `None`: it is no reversal.
    pub(crate) fn reverses(self) -> Option<Self> {
        let of = self.n() % (REVERSALS + 1);
        (self.author() == REVERSED && of > 0).then(|| Self::new(REVERSED, self.n() - of))
    }

    /// The recordId.
    pub(crate) fn id(self) -> String {
        format!("c{}-{}", self.author(), self.n())
    }

    /// The code of a recordId.
    pub(crate) fn of_id(id: &str) -> Option<Self> {
        let (author, n) = id.strip_prefix('c')?.split_once('-')?;
        let code = Self::new(author.parse().ok()?, n.parse().ok()?);
        (code.id() == id && code.author() < AUTHORS).then_some(code)
    }
}

/// The content of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) code: Code,
    pub(crate) destination: String,
    pub(crate) reference: String,
    pub(crate) unit: &'static str,
    pub(crate) positive: bool,
    pub(crate) value: String,
}

impl Content {
    /// The content of a code under a seed.
    pub(crate) fn of(seed: u64, code: Code) -> Self {
        let mut bits = mix(seed ^ (u64::from(code.author()) << 32 | u64::from(code.n())));
        let mut take = |below: u64| {
            let taken = bits % below;
            bits /= below;
            taken
        };
        let poisoned = take(199) == 0 && code.author() < COLLIDE;
        let hot = matches!(code.author(), HOT | LARGE);
        let to_hot = take(100) < 15 || hot;
        let (destination, reference, whole) = (take(DESTINATIONS), take(4), take(250));
        let (unit, positive, digits) = (if take(3) == 0 { "USD" } else { "EUR" }, take(5) > 1, take(10) as usize);
        let destination = destination + if code.variant() == ELSEWHERE { 7 } else { 0 };
        let more = u64::from(code.variant() == OTHER_VALUE);
        let part = format!("{:09}", mix(bits) % 1_000_000_000);
        let mut value = format!("{}{}{}", whole + more, if digits > 0 { "." } else { "" }, &part[..digits]);
        let (mut destination, mut positive) =
            (if to_hot { HOT_DESTINATION.to_owned() } else { format!("d{destination}") }, positive);
        let (reference, unit) = if hot { (0, "EUR") } else { (reference, unit) };
        if poisoned {
            (destination, positive) = (format!("{POISONED}{}", code.n() % 3), false);
            format!("{POISON}{}", ["", ".5", ".6"][usize::from(code.variant().min(2))]).clone_into(&mut value);
        }
        match code.author() {
            COLLIDE => (destination, positive) = (format!("colliding-{}", code.variant()), true),
            // In pairs: a negative record, and a positive one that makes its total large enough.
            DECIDED => {
                destination = format!("decided-{}", code.n() / 2);
                positive = code.n() % 2 == 1;
                value = if positive { "100" } else { "5" }.to_owned();
            }
            // Two of the three reversals fit.
            REVERSED => {
                destination = format!("reversed-{}", code.n() / (REVERSALS + 1) % 16);
                positive = code.reverses().is_none();
                value = if positive { "100.5" } else { "40.25" }.to_owned();
            }
            _ => {}
        }
        let is_of_one_key = matches!(code.author(), DECIDED | REVERSED);
        let (reference, unit) = if is_of_one_key { (0, "EUR") } else { (reference, unit) };
        Self { code, destination, reference: format!("r{reference}"), unit, positive, value }
    }

    /// Whether two records under one id have the same content.
    pub(crate) fn has_same_content(&self, other: &Self) -> bool {
        let code = self.code;
        *self == Self { code, ..other.clone() }
    }

    /// Whether it must become a dead letter.
    pub(crate) fn is_poison(&self) -> bool {
        self.destination.starts_with(POISONED)
    }

    /// Whether it must raise an alert.
    pub(crate) fn alerts(&self) -> bool {
        decimal::parse(&self.value) > decimal::parse(self.threshold())
    }

    /// Its contribution to its total, in billionths.
    pub(crate) fn signed(&self) -> i128 {
        let value = decimal::parse(&self.value).unwrap_or_default();
        if self.positive { value } else { -value }
    }

    /// The threshold above which it raises an alert.
    pub(crate) fn threshold(&self) -> &'static str {
        if self.unit == "USD" { THRESHOLD_USD } else { THRESHOLD }
    }

    /// The JSON that is sent; every seventh value is a number.
    pub(crate) fn json(&self) -> String {
        let reverses = self.code.reverses();
        // A reversal has the time of its record, and is never sent as a record.
        let n = reverses.unwrap_or(self.code).n();
        let quote = if n.is_multiple_of(7) && reverses.is_none() { "" } else { "\"" };
        let end = match reverses {
            Some(reversed) => format!(r#""reverses":"{}","attributes":{{"reason":"{REASON}"}}"#, reversed.id()),
            None => format!(r#""attributes":{{"n":{n}}}"#),
        };
        format!(
            r#"{{"recordId":"{}","time":"2026-01-{:02}T{:02}:{:02}:{:02}Z","sourceId":"source-{}","destinationId":"{}","type":"{}","value":{quote}{}{quote},"unit":"{}","reference":"{}",{end}}}"#,
            self.code.id(),
            n / 86_400 % 28 + 1,
            n / 3_600 % 24,
            n / 60 % 60,
            n % 60,
            self.code.author(),
            self.destination,
            if self.positive { "positive" } else { "negative" },
            self.value,
            self.unit,
            self.reference,
        )
    }

    /// The JSON of the request for a reversal.
    pub(crate) fn reversal_json(&self) -> String {
        format!(r#"{{"recordId":"{}","value":"{}","reason":"{REASON}"}}"#, self.code.id(), self.value)
    }

    /// Whether a published record, as JSON, has this content.
    pub(crate) fn matches(&self, record: &Value) -> bool {
        let Ok(sent) = serde_json::from_str::<Value>(&self.json()) else { return false };
        let Some(sent) = sent.as_object() else { return false };
        let same =
            sent.iter().filter(|(name, _)| *name != "value").all(|(name, value)| record.get(name) == Some(value));
        let received = |name: &str| record.get(name).is_some_and(Value::is_string);
        let fields = record.as_object().map_or(0, serde_json::Map::len);
        same && record["value"] == self.value.as_str()
            && received("receivedAt")
            && received("processedAt")
            && fields == sent.len() + 2
    }
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
fn mix(number: u64) -> u64 {
    let mut bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_by_its_id() {
        let code = Code::new(3, 123_456);
        assert_eq!(Code::of_id(&code.id()), Some(code));
        assert_eq!(code.with_variant(2).variant(), 2);
        assert_eq!(code.with_variant(2).id(), code.id());
        for external in ["", "c1", "c1-01", "c99-1", "x1-1"] {
            assert_eq!(Code::of_id(external), None, "{external}");
        }
    }

    #[test]
    fn ids_that_collide_have_a_content_for_each_destination() {
        let contents: Vec<Content> = Code::new(COLLIDE, 3).variants().map(|code| Content::of(1, code)).collect();
        let destinations: std::collections::BTreeSet<&str> = contents.iter().map(|one| &*one.destination).collect();
        assert_eq!((contents.len(), destinations.len()), (VARIANTS, VARIANTS));
        assert!(contents.iter().all(|one| one.positive && !one.has_same_content(&contents[0]) || one == &contents[0]));
        assert_eq!(Code::new(0, 3).variants().count(), 3);
    }

    #[test]
    fn reversals_have_the_key_and_the_time_of_their_record() {
        let codes = (8..12).map(|n| Code::new(REVERSED, n));
        let all: Vec<(Option<Code>, Value)> =
            codes.map(|code| (code.reverses(), serde_json::from_str(&Content::of(1, code).json()).unwrap())).collect();
        let (none, original) = &all[0];
        assert_eq!((*none, &original["type"]), (None, &"positive".into()));
        for (reverses, reversal) in &all[1..] {
            assert_eq!(*reverses, Some(Code::new(REVERSED, 8)));
            assert_eq!((&reversal["reverses"], &reversal["type"]), (&original["recordId"], &"negative".into()));
            for field in ["time", "sourceId", "destinationId", "unit", "reference"] {
                assert_eq!(reversal[field], original[field], "{field}");
            }
        }
    }

    #[test]
    fn records_are_compared_field_by_field() {
        let content = Content::of(1, Code::new(0, 8));
        let mut came: Value = serde_json::from_str(&content.json()).unwrap();
        assert!(!content.matches(&came), "a published record has times");
        came["receivedAt"] = "t".into();
        came["processedAt"] = "t".into();
        assert!(content.matches(&came));
        came["value"] = "1e9".into();
        assert!(!content.matches(&came));
        assert_ne!(Content::of(1, content.code.with_variant(OTHER_VALUE)).value, content.value);
    }
}
