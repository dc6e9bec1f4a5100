export { default } from "runledger/testing/setup";
