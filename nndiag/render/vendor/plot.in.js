export {plot, text, areaY, link, dot, ruleX, rect, tip, pointerY} from "@observablehq/plot";
