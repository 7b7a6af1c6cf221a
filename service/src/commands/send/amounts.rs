//! `type` and `value` of a row: from a signed column, from debit and credit columns, from a column with a sign.

use anyhow::bail;

use super::{
    args::{AmountArgs, SignColumn},
    numbers::{Amount, Numbers},
    parts::{Parts, quoted},
};
use crate::domain::{Invalid, code};

/// Columns of a row's amount.
#[derive(Debug, Default)]
pub(super) struct Amounts {
    numbers: Numbers,
    columns: Vec<Column>,
    sign: Option<SignColumn>,
}

/// A column that holds amounts with a sign of their own, or whose name is the sign.
#[derive(Debug)]
struct Column {
    name: String,
    sign: Sign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Own,
    Debit,
    Credit,
}

impl Amounts {
    /// Checks the flags.
    ///
    /// # Errors
    /// Two of them give the same.
    pub(super) fn new(args: &AmountArgs) -> anyhow::Result<Self> {
        let named = |name: &String, sign| Column { name: name.clone(), sign };
        let mut columns: Vec<_> = args.signed.iter().map(|name| named(name, Sign::Own)).collect();
        columns.extend(args.debit.iter().map(|name| named(name, Sign::Debit)));
        columns.extend(args.credit.iter().map(|name| named(name, Sign::Credit)));
        let is_split = args.debit.is_some() || args.credit.is_some();
        if is_split && !args.signed.is_empty() || !columns.is_empty() && args.sign.is_some() {
            bail!("give one of --signed, --debit with --credit, and --sign: each gives type");
        }
        for (index, Column { name, .. }) in columns.iter().enumerate() {
            if columns[..index].iter().any(|other| other.name == *name) {
                bail!("the column {name} is given twice by --signed, --debit and --credit");
            }
        }
        let numbers = Numbers { decimal: args.decimal, scale: args.scale };
        Ok(Self { numbers, columns, sign: args.sign.clone() })
    }

    /// Columns that are read.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|column| column.name.as_str()).chain(self.sign.iter().map(|sign| sign.column.as_str()))
    }

    /// Fields that come from these columns.
    pub(super) fn gives(&self) -> &'static [&'static str] {
        match (self.columns.is_empty(), &self.sign) {
            (false, _) => &["type", "value"],
            (true, Some(_)) => &["type"],
            (true, None) => &[],
        }
    }

    /// The flag that names the columns.
    pub(super) fn flag(&self) -> &'static str {
        match self.columns.first().map(|column| column.sign) {
            Some(Sign::Own) => "--signed",
            Some(Sign::Debit | Sign::Credit) => "--debit and --credit",
            None => "--sign",
        }
    }

    /// Columns from which a field comes.
    pub(super) fn columns_of(&self, field: &str) -> Vec<&str> {
        if self.gives().contains(&field) { self.columns().collect() } else { Vec::new() }
    }

    /// Puts type and value of a row; `cell` gives the text of a column that is filled.
    ///
    /// # Errors
    /// A cell that is no amount, or that there is not exactly one.
    pub(super) fn put<'a>(&self, parts: &mut Parts, cell: impl Fn(&str) -> Option<&'a str>) -> Result<(), Invalid> {
        if let Some(SignColumn { column, positive, negative }) = &self.sign {
            let kind = match cell(column).map(str::trim) {
                Some(text) if text == positive => "positive",
                Some(text) if text == negative => "negative",
                Some(_) => {
                    let rule = format!("must be \"{positive}\" or \"{negative}\", which --sign names");
                    return Err(Invalid::new(code::INVALID_VALUE, "/type", rule));
                }
                None => {
                    return Err(Invalid::new(code::MISSING_FIELD, "/type", format!("is missing: {column} is empty")));
                }
            };
            parts.put("type", quoted(kind), "");
        }
        if self.columns.is_empty() { self.plain(parts) } else { self.split(parts, cell) }
    }

    /// A value without a sign, where flags change how it is written or its text shows a remedy.
    fn plain(&self, parts: &mut Parts) -> Result<(), Invalid> {
        let Some(json) = parts.get("value") else { return Ok(()) };
        let text: String = match json.as_bytes().first() {
            Some(b'"') => match serde_json::from_str(json) {
                Ok(text) => text,
                Err(_) => return Ok(()),
            },
            Some(b'-' | b'0'..=b'9') => json.to_owned(),
            _ => return Ok(()),
        };
        let amount = self.read(&text)?;
        if amount.is_negative {
            let rule = "is negative; --signed COLUMN makes type of its sign";
            return Err(Invalid::new(code::INVALID_VALUE, "/value", rule));
        }
        // Without a flag the value is sent as it is written.
        if self.numbers.decimal.is_some() || self.numbers.scale.is_some() {
            parts.put("value", quoted(&amount.value), "");
        }
        Ok(())
    }

    fn split<'a>(&self, parts: &mut Parts, cell: impl Fn(&str) -> Option<&'a str>) -> Result<(), Invalid> {
        let filled = self.columns.iter().filter_map(|column| Some((column, cell(&column.name)?)));
        let mut filled: Vec<_> =
            filled.map(|(column, text)| Ok((column, self.read(text)?))).collect::<Result<_, Invalid>>()?;
        // Many ledgers fill the other column with a zero.
        if filled.len() > 1 && filled.iter().any(|(_, amount)| !is_zero(amount)) {
            filled.retain(|(_, amount)| !is_zero(amount));
        } else {
            filled.truncate(1);
        }
        let names = || self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(" and ");
        let (column, Amount { is_negative, value }) = match &filled[..] {
            [one] => one,
            [] => {
                let other = match &self.columns[..] {
                    [Column { sign: Sign::Debit, .. }] => "; --credit names the column of positive amounts",
                    [Column { sign: Sign::Credit, .. }] => "; --debit names the column of negative amounts",
                    _ => "",
                };
                let rule = format!("is missing: {} is empty{other}", names());
                return Err(Invalid::new(code::MISSING_FIELD, "/value", rule));
            }
            _ => {
                let rule = format!("comes from two places: {} both hold an amount", names());
                return Err(Invalid::new(code::INVALID_VALUE, "/value", rule));
            }
        };
        let kind = match (column.sign, is_negative) {
            (Sign::Own, true) | (Sign::Debit, false) => "negative",
            (Sign::Own | Sign::Credit, false) => "positive",
            // A reversal, or only a mark of the debit: a guess could be wrong by twice the amount.
            (Sign::Debit | Sign::Credit, true) => {
                let rule = format!(
                    "has a minus in {}: where the minus marks debits, give --signed for both columns instead of --debit and \
                     --credit",
                    column.name
                );
                return Err(Invalid::new(code::INVALID_VALUE, "/value", rule));
            }
        };
        parts.put("type", quoted(kind), "");
        parts.put("value", quoted(value), "");
        Ok(())
    }

    fn read(&self, text: &str) -> Result<Amount, Invalid> {
        self.numbers.read(text).map_err(|rule| Invalid::new(code::INVALID_VALUE, "/value", rule))
    }
}

fn is_zero(amount: &Amount) -> bool {
    amount.value.bytes().all(|byte| matches!(byte, b'0' | b'.'))
}
